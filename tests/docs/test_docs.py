"""Blocks of code in README and docs work: Python runs, recipes are read, commands exist, quick starts run whole."""

import re
import shutil
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from leftover.cli import cli
from leftover.data.tokenizer import PLAIN_CHAT_TEMPLATE
from leftover.recipe.files import load_recipe, make_recipe
from leftover.rewards import load_reward
from tests.conftest import scored_rows
from tests.docs.blocks import (
    PAGES,
    ROOT,
    Block,
    all_blocks,
    blocks_of,
    parse,
    shell_lines,
    small_code,
    small_recipe,
    small_words,
)
from tests.docs.rows import FILES, shown_rows, write

KNOWN = {"python", "yaml", "sh", "bash", "console", "json", "jsonl", "csv", "text", ""}
LEAST = {"name": "t", "output_dir": "runs/t", "model": {"path": "m"}, "data": {"path": "rows.jsonl"}}
STARTS = [page for page in PAGES if page.parent.name == "start"]
# Long ones of the quick starts are read and not run; what they do is tested elsewhere.
_ONLY_READ = ("--rounds", "--dry-run")

COMMANDS = [
    (block, words)
    for block in all_blocks("sh", "bash", "console", "")
    for words in shell_lines(block.text if block.language else "")
]


@pytest.fixture(scope="session")
def model(tiny_llama_path: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny Llama with room and a chat template: what stands for any model that a page names."""
    from transformers import AutoConfig, AutoTokenizer

    folder = tmp_path_factory.mktemp("docs") / "model"
    shutil.copytree(tiny_llama_path, folder)
    config = AutoConfig.from_pretrained(folder)
    config.max_position_embeddings = 1024
    config.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, whose modules can be imported; what was imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


def of_pages(*languages: str) -> Any:
    pages = dict.fromkeys(block.page for block in all_blocks(*languages))
    return pytest.mark.parametrize("page", pages)


def test_no_block_is_of_a_kind_that_nothing_checks() -> None:
    blocks = [block for page in PAGES for block in blocks_of(page)]
    assert {block.language for block in blocks} <= KNOWN
    fences = sum(page.read_text("utf-8").count("```") for page in PAGES)
    assert fences == 2 * len(blocks), "a fence that does not close, or an option that blocks_of does not know"
    assert Counter(block.language for block in blocks)["python"] >= 6 and len(COMMANDS) > 30


@of_pages("python")
def test_python_runs(page: str, model: str, folder: Path) -> None:
    """The blocks of a page one after another, as a reader would type them."""
    for name in FILES:
        write(name, folder)
    names: dict[str, Any] = {
        "rows": scored_rows(8),
        "held_out_rows": scored_rows(4, seed=1),
        "my_score": lambda prompts, completions: [float(len(text)) for text in completions],
        "__name__": "__main__",
    }
    before = dict(leftover_objectives())
    try:
        for block in blocks_of(ROOT / page):
            if block.language == "python" and block.title:
                (folder / block.title).write_text(block.text, encoding="utf-8")
            elif block.language == "python":
                exec(small_code(block.text, model, block.name), names)
    finally:
        leftover_objectives().clear()
        leftover_objectives().update(before)
    assert (folder / "runs").exists() or page == "docs/writing-a-reward.md"


def leftover_objectives() -> dict[str, Any]:
    from leftover.objectives import OBJECTIVES

    return OBJECTIVES


@pytest.mark.parametrize("block", all_blocks("yaml"), ids=lambda block: block.name)
def test_recipes_are_read(block: Block, folder: Path) -> None:
    """Whole recipes, or parts of one; a list is one of rewards."""
    for code in blocks_of(ROOT / block.page):
        if code.language == "python" and code.title:
            (folder / code.title).write_text(code.text, encoding="utf-8")
    content = yaml.safe_load(block.text)
    if isinstance(content, list):
        load_reward(content)
    else:
        make_recipe(LEAST | content)


@pytest.mark.parametrize("block", all_blocks("json", "jsonl", "csv"), ids=lambda block: block.name)
def test_rows_are_read(block: Block, folder: Path) -> None:
    from leftover.prepare.own_rows import checked_rows
    from leftover.recipe.lol_config import LoLConfig

    recipe = next((b for b in blocks_of(ROOT / block.page) if b.title == "recipe.yaml"), None)
    columns = (yaml.safe_load(recipe.text) if recipe else {}).get("data", {}).get("columns", {})
    rows = shown_rows(block.title, block.text)
    args = LoLConfig(output_dir=str(folder), columns=columns)
    assert len(checked_rows(rows, args=args, completions="if given")) >= len(rows)
    if block.title in FILES:
        made = FILES[block.title]()
        assert all(row.keys() == made[0].keys() for row in rows), "tests/docs/rows.py writes other columns"


def _name(value: Any) -> str:
    return value.name if isinstance(value, Block) else " ".join(value[:3])


@pytest.mark.parametrize(("block", "words"), [c for c in COMMANDS if c[1][0] == "leftover"], ids=_name)
def test_commands_are_those_that_exist(block: Block, words: list[str]) -> None:
    """Every option, and every value of an option; of a recipe also the keys that `--set` names."""
    given = parse(words).params
    changed = list(given.get("overrides") or ())
    recipe = given.get("recipe") or ""
    if recipe.startswith("recipes/"):
        load_recipe(ROOT / recipe, changed)
    elif recipe and changed and "recipe.yaml" in recipe:
        make_recipe(LEAST, overrides=changed)
    if given.get("methods"):
        from leftover.commands.compare.methods import METHODS

        assert set(given["methods"].split(",")) <= {*METHODS, "ppo", "paper", "nll_top", "samplers", "all"}


@pytest.mark.parametrize(("block", "words"), [c for c in COMMANDS if c[1][0] in ("make", "pip")], ids=_name)
def test_make_and_pip_find_what_they_name(block: Block, words: list[str]) -> None:
    targets = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert words[0] != "make" or words[1] in targets
    assert set(re.findall(r"leftover\[(\w+)\]", " ".join(words))) <= set(extras)


@pytest.mark.parametrize("page", STARTS, ids=lambda page: page.stem)
def test_a_quick_start_runs_from_its_first_line_to_its_last(page: Path, model: str, folder: Path) -> None:
    ran = []
    for block in blocks_of(page):
        if block.language in ("json", "csv"):
            write(block.title, folder)
        elif block.language == "yaml":
            content = yaml.safe_load(block.text)
            small = small_recipe(content, model) if isinstance(content, dict) else content
            (folder / block.title).write_text(yaml.safe_dump(small), encoding="utf-8")
        elif block.language == "sh":
            for words in shell_lines(block.text):
                if not set(_ONLY_READ) & set(words):
                    cli.main(args=small_words(words, model)[1:], standalone_mode=False)
                    ran.append(words[1])
    assert "run" in ran
    assert list(folder.glob("runs/*/report.html"))


def test_numbers_of_the_guides_stand_in_the_pages_that_they_name() -> None:
    """Of every row of a table that links to a measurement: each number with a point is in that page, as it is."""
    checked = 0
    for name in ("choosing.md", "length.md"):
        for line in (ROOT / "docs" / name).read_text("utf-8").splitlines():
            if line.startswith("| ") and (
                target := re.search(r"\]\(\.\./((?:reproductions|benchmarks)/\w+\.md)", line)
            ):
                source = (ROOT / target[1]).read_text("utf-8")
                for number in re.findall(r"[+−]?\d*\.\d+(?: \[[^\]]+\])?", line.partition("](")[0]):
                    assert number in source, f"{name}: {number} is not in {target[1]}"
                    checked += 1
    assert checked > 25


def table(page: str, heading: str) -> Iterator[dict[str, str]]:
    """The rows of the first table behind a heading, as heading of the column -> cell."""
    lines = (ROOT / "docs" / page).read_text("utf-8").partition(f"## {heading}\n")[2].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    length = next((i for i, row in enumerate(cells) if len(row) != len(cells[0])), len(cells))
    for row in cells[2:length]:
        yield dict(zip(cells[0], row, strict=True))


def config(name: str) -> Any:
    import leftover

    if hasattr(leftover, name):
        return getattr(leftover, name)
    trl = pytest.importorskip("trl")
    return getattr(trl, name)


def test_settings_of_trl_and_ours_have_these_names() -> None:
    seen = 0
    for row in table("from-trl.md", "Settings"):
        for name, cell in list(row.items())[1:]:
            for setting in re.findall(r"`(\w+)`", cell):
                assert setting in config(name).__dataclass_fields__, f"{name} has no {setting}"
                seen += 1
    assert seen > 50


def test_defaults_of_trl_and_ours_are_these() -> None:
    rows = list(table("from-trl.md", "Defaults that differ"))
    assert len(rows) == 4
    for row in rows:
        setting = row[""].strip("`")
        for name, cell in list(row.items())[1:]:
            default = config(name).__dataclass_fields__[setting].default
            assert cell == str(getattr(default, "value", default)), (name, setting)


def test_the_code_that_the_pages_name_is_there() -> None:
    """`leftover/x.py` exists, and `leftover/x.py: name` has that name."""
    named = 0
    for page in [page for page in PAGES if page.name != "log.md"]:
        for path, name in re.findall(
            r"`((?:leftover|tests|recipes|benchmarks)/[\w/.-]+)(?:: (\w+)…?)?`", page.read_text("utf-8")
        ):
            found = ROOT / path
            assert found.exists(), f"{page.name}: {path}"
            assert not name or re.search(rf"\b{name}", found.read_text("utf-8")), f"{page.name}: {path}: {name}"
            named += 1
    assert named > 40


@pytest.fixture(scope="module")
def hooks() -> Any:
    import importlib.util

    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_metric_setting_command_and_export_is_told(hooks: Any) -> None:
    import leftover
    from leftover.evaluation.measures import MEASURES

    told = {page: hooks.generated((ROOT / "docs" / page).read_text("utf-8")) for page in ("report.md", "api.md")}
    assert all(f"`{name}`" in told["report.md"] for name in MEASURES)
    assert all(re.search(rf"^::: \S+\.{name}$", told["api.md"], re.MULTILINE) for name in leftover._EXPORTS)
    assert "`objective_settings`" in told["api.md"] and "`kl_coef`" in told["api.md"]
    assert "`per_device_train_batch_size`" not in told["api.md"]
    marked = re.findall(r"^<!-- (\w+)", "".join(told.values()), re.MULTILINE)
    assert not marked, f"nothing stands for {marked}"


def test_links_lead_to_pages_of_the_site_or_are_left_out(hooks: Any, caplog: pytest.LogCaptureFixture) -> None:
    text = (
        "[a](../reproductions/hh_small.md#x) [b](../leftover/cli.py) ![c](report_phone.png) [d](https://x.org) [e](#f)"
    )
    assert hooks.relinked(text, "choosing.md") == (
        "[a](reproductions/hh_small.md#x) b ![c](report_phone.png) [d](https://x.org) [e](#f)"
    )
    assert hooks.relinked("[a](../docs/paper.md)", "reproductions/hh_small.md") == "[a](../paper.md)"
    assert hooks.relinked("```\n[a](../leftover/cli.py)\n```\n", "x.md") == "```\n[a](../leftover/cli.py)\n```\n"
    assert not caplog.records
    hooks.relinked("[a](../nothing.py)", "choosing.md")
    assert "docs/choosing.md links to ../nothing.py, which is not there" in caplog.text


def test_what_a_page_loads_is_seen(hooks: Any) -> None:
    assert hooks.loads('<a href="https://arxiv.org/abs/1">x</a><script src="assets/x.js"></script>') == []
    loading = '<script src="https://cdn.org/x.js"></script><link rel="stylesheet" href="//cdn.org/y.css">'
    assert hooks.loads(f"{loading}<style>a {{background: url(https://cdn.org/z.png)}}</style>") == [
        "https://cdn.org/x.js",
        "//cdn.org/y.css",
        "https://cdn.org/z.png",
    ]


def test_every_page_stands_in_the_navigation() -> None:

    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    nav = re.findall(r": ([\w/-]+\.md)$", text.partition("\nnav:")[2], re.MULTILINE)
    own = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert own <= set(nav) and len(nav) == len(set(nav))
