"""The two files of versions name the same."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_version_has_hashes() -> None:
    """But torch, whose CPU build lies elsewhere (`make lock`)."""
    pinned = set((ROOT / "constraints.txt").read_text("utf-8").split())
    hashed = (ROOT / "constraints.hashed.txt").read_text("utf-8")
    found = set(re.findall(r"^(\S+==\S+)", hashed, re.MULTILINE))

    def normal(names: set[str]) -> set[str]:
        return {re.sub(r"[-_.]+", "-", name.partition("==")[0]).lower() + name[name.index("=") :] for name in names}

    assert normal(pinned) - normal(found) == {name for name in pinned if name.startswith("torch==")}
    assert normal(found) <= normal(pinned)
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=\S+==)", hashed))
