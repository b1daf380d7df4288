"""Selected rows in the columns of other trainers, from files, from Python and from runs; TRL trains on each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import leftover
from leftover import cli
from leftover.commands.select.run import Selection, select
from leftover.errors import UserError
from leftover.store.table import Table, column
from tests.conftest import scored_rows

FORMATS = ("prompt-completion", "messages", "pairs", "kto", "groups")


def two_of_each(num_prompts: int = 12) -> list[dict[str, Any]]:
    """Two completions of every prompt, of reward i and i + 1."""
    return [
        {"prompt": f"Question {i}?", "completion": f" {word} {i}", "reward": float(i + good)}
        for i in range(num_prompts)
        for good, word in enumerate(("bad", "good"))
    ]


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return pq.read_table(path).to_pylist() if path.suffix else list(datasets.load_from_disk(path))


def made(table: Any, **options: Any) -> list[dict[str, Any]]:
    dataset = select(table, **options).dataset
    assert dataset is not None
    return list(dataset)


def test_the_leftover_is_what_is_above_its_value_weighted_by_its_advantage(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    rows, analysis = scored_rows(40), leftover.inspect(scored_rows(40)).analysis
    found = made(rows)
    above = [i for i, a in enumerate(analysis["advantage"]) if a > 0]
    assert 0 < len(found) == len(above) < 40
    assert [row["prompt"] for row in found] == [rows[i]["prompt"] for i in above]
    assert [row["weight"] for row in found] == pytest.approx(list(analysis["advantage"][above]), rel=1e-5)
    assert all(row["completion"] == rows[i]["completion"] for row, i in zip(found, above, strict=True))


def test_top_and_rows_take_others_and_count_them_alike(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    rows = two_of_each()
    top = made(rows, top=25)
    assert sorted(row["reward"] for row in top) == [9.0, 10.0, 10.0, 11.0, 11.0, 12.0]
    assert {row["weight"] for row in top} == {1.0}
    assert [row["completion"] for row in made(rows, rows="best")] == [f" good {i}" for i in range(12)]
    assert len(made(rows, rows="all")) == 24


def test_rows_without_a_score_and_held_out_rows_are_skipped_and_counted(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [row | {"split": "test" if i % 4 == 3 else "train"} for i, row in enumerate(two_of_each())]
    found = select([*rows, {"prompt": "Unscored", "completion": " row", "split": "train"}], rows="all")
    assert found.num_rows == found.num_scored == 18
    said = str(found)
    assert "Skipped 1 row without a score" in said and "Skipped 6 rows of the file's own validation and test" in said
    assert len(made(rows, rows="all", overrides=["data.columns.split=null"])) == 24


def test_pairs_are_of_the_best_and_the_worst_of_a_prompt(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    rows = two_of_each()
    rows += [{"prompt": "Question 3?", "completion": " worst", "reward": -2.0}]
    rows += [{"prompt": "Alone", "completion": " one", "reward": 9.0}]
    rows += [{"prompt": "Same", "completion": " text", "reward": reward} for reward in (0.0, 5.0)]
    rows += [{"prompt": "Tie", "completion": f" text {i}", "reward": 4.0} for i in range(2)]
    found = select(rows, format="pairs", rows="best")
    assert found.dataset is not None
    assert found.dataset[3] == {
        "prompt": "Question 3?", "chosen": " good 3", "rejected": " worst",
        "margin": 6.0, "chosen_reward": 4.0, "rejected_reward": -2.0,
    }  # fmt: skip
    assert found.num_rows == 12 and list(found.dataset["prompt"]) == [f"Question {i}?" for i in range(12)]
    assert "Skipped 2 prompts without two completions of different reward" in str(found)
    assert "Skipped 1 prompt whose best and worst completion are the same text" in str(found)
    fewer = made(rows, format="pairs")
    assert 0 < len(fewer) < 12, "the chosen completion is a selected one"
    with pytest.raises(UserError, match="40 prompts without two completions"):
        select(scored_rows(40), format="pairs", rows="best")


def test_kto_labels_say_what_is_selected(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    found = made(two_of_each(), format="kto", rows="best")
    assert [row["label"] for row in found] == [False, True] * 12
    with pytest.raises(UserError, match=r"no undesirable row.*Leave --rows out.*--rows best or --top 25"):
        select(two_of_each(), format="kto", rows="all")


def test_groups_hold_the_selected_completions_of_a_prompt(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    rows = two_of_each()
    found = made(rows[::2] + rows[1::2], format="groups", rows="all")  # the rows of a prompt stand apart
    assert [row["prompt"] for row in found] == [f"Question {i}?" for i in range(12)]
    assert found[5]["completions"] == [" bad 5", " good 5"] and found[5]["rewards"] == [5.0, 6.0]
    assert found[5]["advantages"][1] - found[5]["advantages"][0] == pytest.approx(1)


def test_conversations_stay_conversations(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    turns = [{"role": "user", "content": "Call it"}]
    called = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    turns = [*turns, called, {"role": "tool", "content": "3"}]
    rows = [{"prompt": turns, "completion": "Done", "reward": 1.0, "tools": tools}]
    rows += [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in two_of_each()]
    select(rows, tmp_path / "a.jsonl", rows="all")
    first = read(tmp_path / "a.jsonl")[0]
    assert first["prompt"] == turns and first["completion"] == [{"role": "assistant", "content": "Done"}]
    assert json.loads(first["tools"]) == tools
    select(rows, tmp_path / "b.parquet", rows="all", format="messages")
    first, second = read(tmp_path / "b.parquet")[:2]
    assert [turn["role"] for turn in first["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert first["messages"][1]["tool_calls"][0]["function"]["name"] == "f"
    assert second["messages"][-1]["content"] == " bad 0" and second["tools"] is None


def test_a_text_becomes_a_turn_without_its_outer_space(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    [first, *_] = made(two_of_each(), format="messages", rows="all")
    turns = [{"role": "user", "content": "Question 0?"}, {"role": "assistant", "content": "bad 0"}]
    assert first["messages"] == turns


def test_texts_in_chat_are_selected_as_messages(tmp_path: Path, rows_file: Callable) -> None:
    found = made(rows_file(two_of_each()), overrides=["data.prompts=chat"], rows="all")
    assert found[0]["prompt"] == [{"role": "user", "content": "Question 0?"}]
    assert found[0]["completion"] == [{"role": "assistant", "content": " bad 0"}]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_kind_of_output_holds_the_same_rows_and_nothing_is_left_beside_it(
    kind: str, tmp_path: Path, rows_file: Callable, monkeypatch: Any
) -> None:
    # Parts of four rows: none of a pair or a group is lost between two of them.
    monkeypatch.setattr("leftover.commands.select.formats.SHARD_ROWS", 4)
    monkeypatch.setattr("leftover.store.table.SHARD_ROWS", 4)
    path, rows = rows_file(two_of_each()), "best" if kind in ("pairs", "kto") else "all"
    outputs = [tmp_path / "out" / name for name in ("a.jsonl", "a.parquet", "a")]
    counts = [select(path, output, format=kind, rows=rows).num_rows for output in outputs]
    first, *others = map(read, outputs)
    assert len(first) == counts[0] == (12 if kind in ("pairs", "groups") else 24) and first == others[0] == others[1]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a", "a.jsonl", "a.parquet"]


def test_what_cannot_be_written_is_refused_before_a_row_is_read(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for output, message in (
        ("a.txt", "ends in .txt: name a file that ends in .jsonl or .parquet"),
        ("full", "not empty"),
    ):
        with pytest.raises(UserError, match=message):
            select("no such file", tmp_path / output)
    for wrong, message in (
        ({"format": "pair"}, "did you mean 'pairs'"),
        ({"rows": "some"}, "not one of leftover, best, all"),
        ({"rows": "all", "top": 3}, "give one of them"),
        ({"top": 101}, "at most 100"),
    ):
        with pytest.raises(UserError, match=message):
            select("no such file", **wrong)  # type: ignore[arg-type]


def test_a_failed_selection_leaves_the_old_file(tmp_path: Path, rows_file: Callable) -> None:
    target = tmp_path / "old.jsonl"
    target.write_text("old\n")
    with pytest.raises(UserError, match="no row can be written"):
        select(rows_file(scored_rows(20)), target, format="pairs", rows="best")
    assert target.read_text() == "old\n" and not list(tmp_path.glob("*.tmp"))
    mixed = [*two_of_each(), {"prompt": [{"role": "user", "content": "Hi"}], "completion": "Ho", "reward": 1}]
    with pytest.raises(UserError, match=r"cannot be written as \.parquet.*write a \.jsonl file"):
        select(rows_file(mixed), tmp_path / "b.parquet", rows="all")
    assert not (tmp_path / "b.parquet").exists()


def test_a_run_gives_its_own_value(tmp_path: Path, tiny_run: Callable, capsys: Any) -> None:
    run = tiny_run(tmp_path)
    cli.main(["select", run["output_dir"], "--output", str(tmp_path / "a.jsonl")])
    table = Table(Path(run["output_dir"]) / "table").open("split", "tokens", "value")
    trains = [i for i, row in enumerate(table) if row["split"] == "train" and row["kept"]]
    advantages = column(table, "advantage")[trains]
    weights = [row["weight"] for row in read(tmp_path / "a.jsonl")]
    assert weights == pytest.approx(list(advantages[advantages > 0])) and weights
    said = capsys.readouterr().out
    assert f"Wrote {len(weights)} prompt-completion rows" in said and f"of {len(trains)} scored rows" in said


class OfArrow:
    """Rows that only Arrow's protocol can read."""

    def __init__(self, table: pa.Table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize("kind", ["list", "dataset", "pandas", "arrow", "protocol", "reader", "polars"])
def test_rows_are_taken_from_whatever_holds_some(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    rows: list[dict[str, Any]] = [*two_of_each(), {"prompt": "Unscored", "completion": " row", "reward": None}]
    table: Any = pa.Table.from_pylist(rows)
    if kind == "polars":
        table = pytest.importorskip("polars").from_arrow(table)
    else:
        table = {
            "list": lambda: rows, "dataset": lambda: datasets.Dataset.from_list(rows), "pandas": table.to_pandas,
            "arrow": lambda: table, "protocol": lambda: OfArrow(table), "reader": table.to_reader,
        }[kind]()  # fmt: skip
    found = select(table, rows="all")
    assert isinstance(found, Selection) and found.num_rows == 24 and "Skipped 1 row without a score" in str(found)


def train(kind: str, path: Path, model: str, tokenizer: Any, folder: Path) -> float:
    """The loss of one step of TRL's trainer for a format."""
    trl = pytest.importorskip("trl")
    trainer, config = {"pairs": ("DPOTrainer", "DPOConfig"), "kto": ("KTOTrainer", "KTOConfig")}.get(
        kind, ("SFTTrainer", "SFTConfig")
    )
    args = getattr(trl, config)(
        output_dir=str(folder), max_steps=1, per_device_train_batch_size=4, use_cpu=True, bf16=False,
        gradient_checkpointing=False, report_to="none", max_length=None, save_strategy="no",
        dataloader_pin_memory=False, disable_tqdm=True,
    )  # fmt: skip
    dataset = datasets.load_from_disk(path)
    made = getattr(trl, trainer)(model=model, args=args, train_dataset=dataset, processing_class=tokenizer)
    return made.train().training_loss


CHAT = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("kind", ["prompt-completion", "messages", "pairs", "kto"])
def test_trl_trains_on_what_is_written(
    kind: str, tiny_llama_path: str, tokenizer: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    if kind == "messages":
        monkeypatch.setattr(tokenizer, "chat_template", CHAT)
    select(two_of_each(), tmp_path / "rows", format=kind, rows="best")
    loss = train(kind, tmp_path / "rows", tiny_llama_path, tokenizer, tmp_path / "trl")
    assert np.isfinite(loss) and loss > 0
