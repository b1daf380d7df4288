"""`leftover fit-reward`: a reward fitted on rows outside a run; recipes name it by its folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leftover.errors import UserError
from leftover.monitoring.terminal import console
from leftover.recipe.files import read_yaml, set_key
from leftover.rewards import load_reward
from leftover.runs.spelling import rewritten
from leftover.store.folders import LOCK, held, make_folder, remove
from leftover.store.manifest import Key, Manifest

_OF_MANIFEST = {f"{name}{end}" for name in ("manifest.json", "manifest.copy.json") for end in ("", ".tmp")}
# What the folder of a reward holds, finished or not.
_FILES = {
    *_OF_MANIFEST, "reward.json", "rejected_rows.jsonl", LOCK,
    "vocabulary.json", "arrays.npz",
    "model", "checkpoints", "metrics.jsonl", "scoring.json",
}  # fmt: skip
KINDS = {"linear": "linear", "fine-tuned": "fine_tuned"}


def fit_reward(
    rows: str, output: str, kind: str | None = None, overrides: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fit a reward on `rows` (see `read_spec`) into the folder `output`; returns its specification and facts.

    The same call again finds it fitted. Raises UserError if the folder holds anything else.
    """
    spec = read_spec(rows, kind, overrides)
    reward, folder = load_reward(spec), Path(output)
    key = {"identity": reward.identity()}
    _check_folder(folder, key)
    make_folder(folder, "--output")
    with held(folder):
        _check_folder(folder, key)  # again: another process may have written until now
        manifest = Manifest(folder, meaning=rewritten)
        if not manifest.begin("reward", key, lambda: _clear(folder)).finished:
            facts = reward.fit(folder)
            wrote = [path for path in folder.iterdir() if path.name in _FILES - _OF_MANIFEST - {LOCK}]
            manifest.finish("reward", wrote=wrote, facts=facts)
    return spec, manifest.facts("reward")["facts"]


def _check_folder(folder: Path, key: Key) -> None:
    """UserError unless the folder is new, empty, or holds this reward or one that was not finished."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is not an empty folder: choose another --output")
    others = {path.name for path in folder.iterdir()} - _FILES if folder.is_dir() else set()
    if others and not (folder / "manifest.json").is_file():
        raise UserError(f"'{folder}' is not an empty folder: choose another --output")
    manifest = Manifest(folder, meaning=rewritten)
    status = manifest.status("reward", key)
    if others or set(manifest.entries) - {"reward"} or (status.action == "stale" and manifest.is_complete("reward")):
        changed = f" ({status.reason})" if status.reason else ""
        raise UserError(f"'{folder}' holds something else{changed}: choose another --output, or remove the folder")


def _clear(folder: Path) -> None:
    """Remove what a fit of other settings left unfinished."""
    for name in _FILES - {LOCK}:
        path = folder / name
        if path.is_dir():
            remove(path, folder)
        else:
            path.unlink(missing_ok=True)


def read_spec(rows: str, kind: str | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The specification of a reward, from a YAML with its keys (`fit` and others) or a file of rows to fit on."""
    spec: Any = {"fit": {"path": rows}}
    if Path(rows).suffix in (".yaml", ".yml"):
        try:
            spec = read_yaml(Path(rows))
        except OSError as error:
            raise UserError(f"no file at '{rows}'") from error
        if not isinstance(spec, dict):
            raise UserError(f"{rows}: a reward is a mapping of keys (fit, features, ...), found {type(spec).__name__}")
    for override in overrides:
        set_key(spec, override)
    spec = {"type": KINDS[kind or "linear"]} | spec
    if kind and spec["type"] != KINDS[kind]:
        raise UserError(f"{rows} has type: {spec['type']}, and --kind is {kind}: leave one out")
    if spec["type"] not in KINDS.values():
        raise UserError(f"type {spec['type']!r} is not fitted on rows; these are: {', '.join(KINDS.values())}")
    if not isinstance(spec.get("fit"), dict) or "path" in spec:
        raise UserError(f"{rows}: name under `fit` the rows to fit on (path, format, columns, ...)")
    return spec


def show(spec: dict[str, Any], facts: dict[str, Any], output: str) -> None:
    """Print what was fitted, how well it does on held-out families, and how a recipe names it."""
    from rich.table import Table

    table = Table(title=f"{spec['type']} reward: {spec['fit']['path']}", title_justify="left", show_header=False)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _text(value))
    terminal = console(width=140)
    terminal.print(table)
    terminal.print("In a recipe, under reward.functions or evaluate.judges:")
    terminal.print(f"  - {{type: {spec['type']}, path: {output.rstrip('/')}}}", soft_wrap=True)


def _text(value: object) -> str:
    if isinstance(value, dict) and value.keys() == {"value", "low", "high"}:
        mean, low, high = ("n/a" if value[key] is None else f"{value[key]:.3f}" for key in ("value", "low", "high"))
        return f"{mean} [{low}, {high}] (95 %)"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {number:g}" for key, number in value.items())
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
