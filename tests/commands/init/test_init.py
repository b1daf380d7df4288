"""`leftover init`: every kind of file becomes a recipe that runs; what it cannot know is asked for, or refused."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leftover import cli, pipeline
from leftover.commands.init.run import make, recipe_name
from leftover.commands.inspect import inspect
from leftover.errors import UserError
from leftover.evaluation.gather import gather
from leftover.pipeline import run
from leftover.recipe.files import load_recipe
from leftover.runs.claim import open_run
from tests.conftest import scored_rows, write_rows
from tests.models.encoder_decoders import tiny

# Enough rows for a scorer to be fitted, few steps, one policy.
_QUICK = (
    "train.max_steps=2", "train.per_device_train_batch_size=4", "reference.train.max_steps=2",
    "reference.train.per_device_train_batch_size=4", "value.candidates=[constant]", "value.num_prompts=8",
    "evaluate.max_prompts=4", "evaluate.max_selection_prompts=4", "evaluate.max_new_tokens=4",
    "policies={a_lol_seq: {objective: a_lol_seq}}",
)  # fmt: skip
_ROWS = scored_rows(60)
Row = dict[str, Any]


def with_score(row: Row) -> Row:
    return {"Id": row["family"], "Question": row["prompt"], "Answer": row["completion"].strip(), "Stars": row["reward"]}


def with_thumb(row: Row) -> Row:
    text = {"request": row["prompt"], "response": row["completion"].strip(), "model": "v1"}
    return text | {"feedback": "thumbs up" if row["reward"] > 1 else "thumbs down"}


def with_truth(row: Row) -> Row:
    return {"input": row["prompt"], "output": row["completion"].strip(), "liked": row["reward"] > 1, "latency_ms": 7}


def as_pair(row: Row) -> Row:
    return {"prompt": row["prompt"], "chosen": row["completion"], "rejected": " No idea. " + row["family"]}


def as_group(row: Row) -> Row:
    completions = [row["completion"], f" Well, {row['family']}.", " What?"]
    completions = [text.strip() for text in completions]
    return {"prompt": row["prompt"], "completions": completions, "rewards": [row["reward"], 0.5, -1]}


def as_messages(row: Row) -> Row:
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"].strip()}]
    return {"messages": turns, "score": row["reward"]}


def as_csv(path: Path, rows: list[Row], delimiter: str = ",") -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def made(rows: str, model: str, *overrides: str, **options: Any) -> Any:
    return make(rows, model, overrides=overrides, **{"assume": True} | options)


@pytest.mark.parametrize(
    ("change", "columns"),
    [
        (with_score, {"prompt": "Question", "completion": " {Answer}", "reward": "Stars"}),
        (with_thumb, {"prompt": "request", "completion": " {response}", "reward": "feedback"}),
        (with_truth, {"prompt": "input", "completion": " {output}", "reward": "liked"}),
        (as_pair, {}),
        (as_group, {"prompt": "{prompt}\n"}),
        (as_messages, {"reward": "score"}),
    ],
)
def test_the_recipe_of_any_kind_of_file_runs(
    change: Callable[[Row], Row], columns: dict[str, str], tmp_path: Path, tiny_llama_path: str
) -> None:
    rows = [change(row) for row in _ROWS]
    is_table = change is with_score
    path = as_csv(tmp_path / "rows.csv", rows) if is_table else write_rows(tmp_path / "rows.jsonl", rows)
    recipe_path, options = tmp_path / "recipe.yaml", [f"--set={key}" for key in _QUICK]
    options.append(f"--set=output_dir={tmp_path / 'run'}")
    cli.main(["init", path, "--model", tiny_llama_path, "--output", str(recipe_path), "--yes", *options])
    recipe = load_recipe(recipe_path)
    written = recipe.data.columns.model_dump(exclude_defaults=True)
    assert written == columns
    assert recipe.reward.functions[0]["new_completions"]["type"] == "linear"
    run(recipe, until="evaluate")
    results = gather(open_run(recipe))
    assert results["can_score_new_completions"]
    assert results["prepare"]["rows"]["rejected"] == 0


@pytest.fixture
def scored_csv(tmp_path: Path) -> str:
    return as_csv(tmp_path / "my rows.csv", [with_score(row) for row in _ROWS])


def test_every_line_has_a_comment_and_the_columns_are_told(scored_csv: str, tiny_llama_path: str) -> None:
    written = made(scored_csv, tiny_llama_path)
    lines = written.text.splitlines()[1:]
    for before, line in zip(["", *lines], lines, strict=False):
        is_key = line and not line.endswith(":") and not line.lstrip().startswith("#")
        assert not is_key or "  # " in line or before.lstrip().startswith("# "), f"{line!r} has no comment"
    said = "\n".join(written.said)
    assert "60 records (csv)" in said
    assert re.search(r"prompt +'Question' \(by its name\)", said)
    assert re.search(r"ignored +Id$", said, re.MULTILINE)
    assert written.recipe.name == "my_rows"
    assert {name: fields["objective"] for name, fields in written.recipe.policies.items()} == {
        "a_lol_seq": "a_lol_seq", "nll": "nll", "nll_top": "nll_top",
    }  # fmt: skip


def test_passes_are_over_the_rows_that_are_trained_on(tmp_path: Path, tiny_llama_path: str) -> None:
    rows = [row if i % 3 else row | {"reward": None} for i, row in enumerate(_ROWS)]
    rows[1] = rows[1] | {"completion": " word" * 90}  # too long
    written = made(write_rows(tmp_path / "rows.jsonl", rows), tiny_llama_path, f"output_dir={tmp_path / 'run'}")
    told = int(re.search(r"passes over (\d+) training rows with a score", written.text)[1])  # type: ignore[index]
    opened = open_run(written.recipe)
    pipeline.prepare(opened, "score")
    opened.close()
    analysis = inspect(tmp_path / "run", output=tmp_path / "a.html").analysis
    assert told == analysis["rows"] < 40


def test_limits_are_quantiles_of_the_tokens_within_the_positions(tmp_path: Path, tiny_llama_path: str) -> None:
    rows = [dict(row) for row in _ROWS]
    rows[7]["completion"] = " word" * 90  # of 60 rows the only one that is that long
    data = made(write_rows(tmp_path / "rows.jsonl", rows), tiny_llama_path).recipe.data
    assert data.max_prompt_tokens + data.max_completion_tokens <= 128  # conftest.MAX_POSITIONS
    long = [row | {"prompt": "word " * 300} for row in rows]
    data = made(write_rows(tmp_path / "long.jsonl", long), tiny_llama_path).recipe.data
    assert data.max_prompt_tokens + data.max_completion_tokens == 128


def test_words_for_thumbs_become_labels_and_no_answer_becomes_no_score(tmp_path: Path, tiny_llama_path: str) -> None:
    rows = [with_thumb(row) for row in _ROWS]
    rows[3]["feedback"] = "n/a"
    written = made(write_rows(tmp_path / "rows.jsonl", rows), tiny_llama_path)
    assert written.recipe.data.labels == {"thumbs up": 1.0, "thumbs down": 0.0}
    assert written.recipe.data.on_bad_row == "skip"
    assert "'n/a' are no score" in written.text and "rows.jsonl:4: 'feedback' is 'n/a'" in written.text


def test_a_label_of_true_and_false_stays_the_label_that_kto_reads(tmp_path: Path, tiny_llama_path: str) -> None:
    rows = [{"prompt": r["prompt"], "completion": r["completion"], "label": r["reward"] > 1} for r in _ROWS]
    data = made(write_rows(tmp_path / "rows.jsonl", rows), tiny_llama_path).recipe.data
    assert data.columns.reward == "reward" and not data.labels


def test_a_chat_model_is_asked_through_its_own_template(tmp_path: Path, tiny_llama_path: str, tokenizer: Any) -> None:
    import shutil

    chat = tmp_path / "chat"
    shutil.copytree(tiny_llama_path, chat)
    (chat / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    rows = write_rows(tmp_path / "rows.jsonl", [with_truth(row) for row in _ROWS])
    data = made(rows, str(chat)).recipe.data
    assert (data.prompts, data.columns.prompt, data.columns.completion) == ("chat", "input", "output")
    data = made(rows, str(chat), "data.prompts=text").recipe.data
    assert (data.prompts, data.columns.completion) == ("text", " {output}")
    rendered = [{**with_truth(row), "input": f"[user] {row['prompt']}\n[assistant] "} for row in _ROWS]
    data = made(write_rows(tmp_path / "done.jsonl", rendered), str(chat)).recipe.data
    assert (data.prompts, data.columns.prompt, data.columns.completion) == ("text", "input", "output"), (
        "they are written by the template already"
    )


def test_an_encoder_decoder_reads_texts_as_they_are(scored_csv: str, tmp_path: Path, tokenizer: Any) -> None:
    tiny("t5", tokenizer).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    written = made(scored_csv, str(tmp_path / "t5"))
    assert written.recipe.data.columns.completion == "Answer", "prompt and completion do not meet"
    assert any("no limit of positions" in line for line in written.said)
    assert any("not known for this model" in line for line in written.said)


def test_many_rows_leave_a_part_to_a_judge(tmp_path: Path, tiny_llama_path: str) -> None:
    from leftover.rewards.independence import dependent_judges

    rows = [with_score(row) for row in scored_rows(420)]
    written = made(as_csv(tmp_path / "rows.csv", rows), tiny_llama_path)
    (judge,) = written.recipe.evaluate.judges
    assert written.recipe.data.part == (0.0, 0.75) and judge["fit"]["part"] == [0.75, 1.0]
    assert judge["fit"]["columns"] == {"prompt": "Question", "completion": " {Answer}", "reward": "Stars"}
    assert not list(dependent_judges(written.recipe))
    assert "path: &path " in written.text and "path: *path" in written.text


@pytest.mark.parametrize(("rows_of_a_thread", "family"), [(2, "thread_id"), (1, "family")])
def test_rows_of_one_thread_stay_together(
    rows_of_a_thread: int, family: str, tmp_path: Path, tiny_llama_path: str
) -> None:
    rows = [with_truth(row) | {"thread_id": i // rows_of_a_thread} for i, row in enumerate(_ROWS)]
    written = made(write_rows(tmp_path / "rows.jsonl", rows), tiny_llama_path)
    assert written.recipe.data.columns.family == family, "ids that no two rows share tell nothing together"


def test_few_rows_get_no_scorer_and_that_is_said(tmp_path: Path, tiny_llama_path: str) -> None:
    written = made(write_rows(tmp_path / "rows.jsonl", _ROWS[:30]), tiny_llama_path)
    assert written.recipe.reward.functions == [{"type": "column"}]
    assert any("too few scored rows" in line for line in written.said)


def test_a_table_parted_by_semicolons_is_read(tmp_path: Path, tiny_llama_path: str) -> None:
    path = as_csv(tmp_path / "rows.csv", [with_score(row) for row in _ROWS], delimiter=";")
    assert made(path, tiny_llama_path).recipe.data.table.delimiter == ";"


def test_the_rows_own_splits_are_used_where_they_are_whole(tmp_path: Path, tiny_llama_path: str) -> None:
    names = ["train", "train", "train", "validation", "test"]
    rows = [row | {"split": names[i % 5]} for i, row in enumerate(_ROWS)]
    written = made(write_rows(tmp_path / "rows.jsonl", rows), tiny_llama_path)
    assert written.recipe.data.columns.split == "split" and "validation_size" not in written.text
    rows = [row | {"split": "train" if i % 5 else "test"} for i, row in enumerate(_ROWS)]
    written = made(write_rows(tmp_path / "rows.jsonl", rows), tiny_llama_path)
    assert written.recipe.data.columns.split is None and any("'split' does not give" in line for line in written.said)


# What cannot become a recipe says what can be done.


def test_answers_without_a_score_are_refused_with_what_can_be_done(tmp_path: Path, tiny_llama_path: str) -> None:
    rows = [{"question": row["prompt"], "response": row["completion"], "note": row["family"]} for row in _ROWS]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=r"no column holds scores \(found: question, response, note\)") as refused:
        made(path, tiny_llama_path)
    for remedy in ("data.columns.reward", "data.columns.answer", "--reward reward.yaml", "type: text"):
        assert remedy in str(refused.value)
    reward = tmp_path / "reward.yaml"
    reward.write_text("- {type: text, function: vader}\n")
    functions = made(path, tiny_llama_path, reward=str(reward)).recipe.reward.functions
    assert functions == [{"type": "text", "function": "vader"}]


def test_known_answers_score_the_rows(tmp_path: Path, tiny_llama_path: str) -> None:
    rows = [{"question": r["prompt"], "response": r["completion"], "expected": str(i)} for i, r in enumerate(_ROWS)]
    recipe = made(write_rows(tmp_path / "rows.jsonl", rows), tiny_llama_path).recipe
    assert recipe.data.columns.answer == "expected"
    assert recipe.reward.functions == [{"type": "text", "function": "numeric_answer"}]


def test_too_many_faulty_rows_are_refused_with_the_first(tmp_path: Path, tiny_llama_path: str) -> None:
    rows = [row | ({"completion": ""} if i % 3 else {}) for i, row in enumerate(_ROWS)]
    with pytest.raises(
        UserError, match=r"40 of 60 rows are faulty; the first:\n.*rows\.jsonl:2: 'completion' is empty"
    ):
        made(write_rows(tmp_path / "rows.jsonl", rows), tiny_llama_path)


def test_a_file_is_never_written_over(scored_csv: str, tiny_llama_path: str, tmp_path: Path) -> None:
    mine = tmp_path / "recipe.yaml"
    mine.write_text("mine")
    with pytest.raises(SystemExit) as ended:
        cli.main(["init", scored_csv, "--model", tiny_llama_path, "--output", str(mine), "--yes"])
    assert ended.value.code == 2 and mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("rows", "said"),
    [("none.csv", "no data file at 'none.csv'"), ("recipe.yaml", "is a recipe, which names its model")],
)
def test_what_is_no_data_file_is_refused(rows: str, said: str, tiny_llama_path: str) -> None:
    with pytest.raises(UserError, match=said):
        made(rows, tiny_llama_path)


def test_no_model_is_refused(scored_csv: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model at"):
        made(scored_csv, str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/my rows.v2.csv", "my_rows.v2"), ("x.jsonl.gz", "x"), ("日本.csv", "rows"), ("data.bin", "data.bin")],
)
def test_a_run_is_named_by_its_file(path: str, name: str) -> None:
    assert recipe_name(path) == name


# `leftover run ROWS --model ID`


def test_run_takes_a_data_file_and_goes_on_with_its_recipe(
    tmp_path: Path, tiny_llama_path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "mine.jsonl", [with_truth(row) for row in _ROWS])
    command = ["run", "mine.jsonl", "--model", tiny_llama_path, *(f"--set={key}" for key in _QUICK)]
    cli.main([*command, "--dry-run"])
    assert not (tmp_path / "runs").exists(), "a dry run writes nothing"
    cli.main(command)
    recipe = tmp_path / "runs" / "mine.yaml"
    assert load_recipe(recipe).train["max_steps"] == 2
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
    written = recipe.read_text()
    capsys.readouterr()
    cli.main(command)
    assert "Recipe: runs/mine.yaml, written before" in capsys.readouterr().out and recipe.read_text() == written


def test_run_refuses_the_recipe_of_other_rows(
    tmp_path: Path, tiny_llama_path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path / "other"):
        write_rows(folder / "mine.jsonl", _ROWS)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine.yaml").write_text(made("mine.jsonl", tiny_llama_path).text)
    with pytest.raises(SystemExit):
        cli.main(["run", "other/mine.jsonl", "--model", tiny_llama_path])
    assert "on 'mine.jsonl': name another folder by --set output_dir" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["run", "runs/mine.yaml", "--model", tiny_llama_path])
    assert "a data file goes with --model" in capsys.readouterr().err


def test_a_data_file_without_a_model_is_told_of_both_ways(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"leftover init .*rows\.csv --model ID.*leftover run .* --model ID"):
        load_recipe(tmp_path / "rows.csv")


def test_json_of_nothing(tmp_path: Path, tiny_llama_path: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([]))
    with pytest.raises(UserError, match="holds no row"):
        made(str(path), tiny_llama_path)
