"""Bad input: exit status 2 and one message that names the file, the row, the key and the remedy."""

import errno
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from leftover import LoLConfig
from leftover.cli import main
from leftover.data.formats import read_rows
from leftover.data.rows import Rejects, check_rows
from leftover.errors import UserError, remedy_of
from leftover.monitoring.finite import plain
from leftover.recipe.data_section import DataSection
from leftover.recipe.files import make_recipe
from leftover.rewards import load_reward
from leftover.training.settings import try_out
from tests.conftest import MAX_POSITIONS, scored_rows

RECORDED = {"functions": [{"type": "column"}]}
GOOD: dict[str, Any] = {"prompt": "How are you?", "completion": " Fine, thank you.", "reward": 1.0}


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused(recipe)`: the message on stderr of a command that must exit with 2."""

    def run(recipe: dict[str, Any] | str | Path, *arguments: str, verb: str = "prepare") -> str:
        with pytest.raises(SystemExit) as stop:
            main([verb, recipe_file(tmp_path, recipe), *arguments])
        message = capsys.readouterr().err
        assert stop.value.code == 2, message
        assert "Traceback" not in message
        return message

    return run


def recipe_file(folder: Path, recipe: dict[str, Any] | str | Path) -> str:
    if isinstance(recipe, Path):
        return str(recipe)
    path = folder / "recipe.yaml"
    path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe), encoding="utf-8")
    return str(path)


def facts(recipe: dict[str, Any]) -> dict[str, Any]:
    return json.loads((Path(recipe["output_dir"]) / "prepare.json").read_text())


def rejects(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    lines = (Path(recipe["output_dir"]) / "rejected_rows.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# Faults of one row: all are listed together, so that one pass mends the file.

ROW_FAULTS = {
    "a missing column": (
        {"prompt": "Hello"},
        "no column 'completion' (found: prompt)",
    ),
    "an empty prompt": (GOOD | {"prompt": ""}, "'prompt' is empty"),
    "a white-space prompt": (GOOD | {"prompt": " \n\t"}, "'prompt' is empty"),
    "an empty completion": (GOOD | {"completion": ""}, "'completion' is empty"),
    "a white-space completion": (GOOD | {"completion": "  "}, "'completion' is empty"),
    "an absent completion": (GOOD | {"completion": None}, "'completion' is missing"),
    "an empty last message": (
        GOOD | {"prompt": [{"role": "user", "content": " "}]},
        "last message of 'prompt' is empty",
    ),
    "a completion of two turns": (
        GOOD | {"completion": [{"role": "assistant", "content": "a"}] * 2},
        "one assistant message",
    ),
    "a prompt that is a number": (GOOD | {"prompt": 7}, "'prompt' is neither a text nor a list"),
    "a reward that is NaN": (GOOD | {"reward": float("nan")}, "'reward' is nan, not a finite number"),
    "an infinite reward": (GOOD | {"reward": float("-inf")}, "'reward' is -inf, not a finite number"),
    "a reward beyond the floats": (GOOD | {"reward": 10**400}, "not a finite number"),
    "a reward whose square no float32 holds": (GOOD | {"reward": -1e308}, "too large to compute with"),
    "a reward that is a word": (GOOD | {"reward": "good"}, "'reward' is the text 'good', not a number"),
    "an unknown split": (GOOD | {"split": "exam"}, "'split' is 'exam'; use one of train, validation, test"),
    "a split that is a list": (GOOD | {"split": ["test"]}, "'split' is ['test']"),
    "is_chosen that is no truth value": (
        GOOD | {"is_chosen": "yes"},
        "'is_chosen' is 'yes'; use true or false",
    ),
    "half of a surrogate pair": (r'{"prompt": "a \ud800", "completion": "b"}', "half of a surrogate pair"),
    "a malformed line": ('{"prompt": "a", ', "malformed JSON"),
    "a line that is a list": ("[1, 2]", "expected one JSON object a line, found a list"),
}


@pytest.mark.parametrize("fault", ROW_FAULTS)
def test_a_faulty_row_is_named_with_its_line_and_the_remedy(fault, tmp_path, tiny_recipe, refused):
    row, reason = ROW_FAULTS[fault]
    recipe = tiny_recipe(tmp_path, rows=[GOOD, row])
    message = refused(recipe)
    assert "1 of 2 rows are faulty" in message
    assert f"{tmp_path}/rows.jsonl:2: " in message
    assert reason in message
    assert "data.on_bad_row: skip" in message


@pytest.mark.parametrize("fault", ROW_FAULTS)
def test_with_skip_a_faulty_row_goes_to_the_rejects_with_reason_and_place(fault, tmp_path, rows_file):
    row, reason = ROW_FAULTS[fault]
    data = DataSection(path=rows_file([GOOD, row]), on_bad_row="skip")
    stats: dict[str, int] = {}
    kept = list(check_rows(read_rows(data), data, Rejects(tmp_path / "rejected_rows.jsonl"), stats))
    assert [r["prompt"] for r in kept] == [GOOD["prompt"]]
    assert (stats["read"], stats["rejected"]) == (2, 1)
    record = json.loads((tmp_path / "rejected_rows.jsonl").read_text(encoding="utf-8"))
    assert reason in record["reason"]
    assert record["where"] == f"{data.path}:2"
    unread = {"line": row} if fault in ("a malformed line", "a line that is a list") else row
    assert record["row"] == _read_back(unread)


def _read_back(row: dict[str, Any] | str) -> Any:
    """What `json.loads` makes of a row; a number that JSON does not have is None, with its name beside it."""
    return plain(json.loads(row if isinstance(row, str) else json.dumps(row)))


def test_only_the_first_faults_are_listed_and_all_are_counted(tmp_path, tiny_recipe, refused):
    message = refused(tiny_recipe(tmp_path, rows=[GOOD] + [GOOD | {"prompt": ""}] * 9))
    assert "9 of 10 rows are faulty" in message
    assert message.count("'prompt' is empty") == 5


def test_with_skip_the_run_goes_on_and_says_how_many_rows_it_rejected(tmp_path, tiny_recipe, caplog):
    caplog.set_level(logging.INFO, "leftover")
    recipe = tiny_recipe(tmp_path, rows=[*scored_rows(30), "{not JSON", GOOD | {"reward": "high"}])
    recipe["data"]["on_bad_row"] = "skip"
    recipe["policies"] = {"nll": {"objective": "nll"}}
    main(["prepare", recipe_file(tmp_path, recipe)])
    assert "32 read, 2 rejected" in caplog.text
    assert facts(recipe)["rows"]["rejected"] == 2
    assert [(r["stage"], r["where"].rpartition(":")[2]) for r in rejects(recipe)] == [
        ("rows", "31"),
        ("rows", "32"),
    ]


def test_a_file_whose_rows_are_all_rejected_is_refused(tmp_path, tiny_recipe, refused):
    message = refused(tiny_recipe(tmp_path, rows=["x", "y"], data={"on_bad_row": "skip"}))
    assert "no usable row" in message
    assert "rejected_rows.jsonl" in message


# Faults of a whole file.


def test_a_file_that_is_not_utf8_is_named_with_the_line(tmp_path, tiny_recipe, refused):
    recipe = tiny_recipe(tmp_path)
    with Path(recipe["data"]["path"]).open("ab") as file:
        file.write('{"prompt": "caf\u00e9", "completion": "x"}\n'.encode("latin-1"))
    message = refused(recipe)
    assert f"{recipe['data']['path']}:61: not UTF-8 text" in message
    assert "iconv" in message


def test_an_empty_file_is_named(tmp_path, tiny_recipe, refused):
    recipe = tiny_recipe(tmp_path, rows=[])
    assert f"{recipe['data']['path']}: the file is empty" in refused(recipe)


def test_a_file_of_blank_lines_holds_no_row(tmp_path, tiny_recipe, refused):
    assert "(key data.path) holds no row" in refused(tiny_recipe(tmp_path, rows=["", "  "]))


def test_a_data_file_that_is_not_there_is_named_with_its_key(tmp_path, tiny_recipe, refused):
    message = refused(tiny_recipe(tmp_path, data={"path": str(tmp_path / "nowhere.jsonl")}))
    assert f"'{tmp_path}/nowhere.jsonl' (key data.path)" in message


def test_a_gzip_file_that_ends_early_is_named(tmp_path, tiny_recipe, refused):
    import gzip

    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 500)[:-12])
    assert f"{path}: not a whole gzip file" in refused(tiny_recipe(tmp_path, data={"path": str(path)}))


def test_a_parquet_file_that_is_none_is_named(tmp_path, tiny_recipe, refused):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"not parquet")
    assert f"{path}: cannot be read as parquet" in refused(tiny_recipe(tmp_path, data={"path": str(path)}))


def test_a_file_of_unknown_kind_asks_for_the_format(tmp_path, tiny_recipe, refused):
    path = tmp_path / "rows.txt"
    path.write_text("x")
    message = refused(tiny_recipe(tmp_path, data={"path": str(path)}))
    assert "set data.format to one of jsonl, " in message and "documents (plain text)" in message


# Rows that are well-formed but too few, too long or too alike.


def test_one_row_cannot_be_split_and_says_so(tmp_path, tiny_recipe, refused):
    message = refused(tiny_recipe(tmp_path, rows=[GOOD]))
    assert "the validation split has no row" in message
    assert "give more rows" in message and "column 'split'" in message


def test_duplicates_are_counted_and_kept(tmp_path, tiny_recipe, caplog):
    caplog.set_level(logging.INFO, "leftover")
    rows = scored_rows(20)
    recipe = tiny_recipe(tmp_path, rows=rows + rows[:7], policies={"nll": {"objective": "nll"}})
    main(["prepare", recipe_file(tmp_path, recipe)])
    assert "27 read, 0 rejected, 7 repeat an earlier row" in caplog.text
    assert facts(recipe)["rows"]["duplicates"] == 7
    assert sum(facts(recipe)["split"][name] for name in ("train", "validation", "test")) == 27


def test_long_prompts_are_cut_on_the_left_and_long_completions_go_to_the_rejects(tmp_path, tiny_recipe, caplog):
    caplog.set_level(logging.INFO, "leftover")
    rows = scored_rows(30)
    for i, row in enumerate(rows):
        row["split"] = ("train", "validation", "test")[max(i - 27, 0)]
    rows[3]["prompt"] = "word " * 60 + rows[3]["prompt"]
    rows[4]["completion"] = " word" * 70
    recipe = tiny_recipe(tmp_path, rows=rows, policies={"nll": {"objective": "nll"}})
    recipe["reward"] = RECORDED
    main(["prepare", recipe_file(tmp_path, recipe)])
    assert "1 prompts cut on the left, 1 completions too long (1 rows dropped)" in caplog.text
    assert facts(recipe)["tokens"] == {"prompts_cut": 1, "completions_long": 1, "rows_dropped": 1}
    (record,) = rejects(recipe)
    assert record["stage"] == "tokens"
    assert record["where"].endswith("rows.jsonl:5")
    assert "data.max_completion_tokens (64)" in record["reason"]
    assert record["row"]["completion"] == rows[4]["completion"]


def test_with_cut_a_long_completion_stays_without_its_end(tmp_path, tiny_recipe, caplog, tokenizer):
    from leftover.recipe.files import make_recipe
    from leftover.runs.claim import open_run

    caplog.set_level(logging.INFO, "leftover")
    rows = scored_rows(30)
    rows[4]["completion"] = " word" * 70
    recipe = tiny_recipe(tmp_path, rows=rows, policies={"nll": {"objective": "nll"}}, reward=RECORDED)
    recipe["data"]["long_completions"] = "cut"
    main(["prepare", recipe_file(tmp_path, recipe)])
    assert "1 completions too long (cut, without end of sequence)" in caplog.text
    assert "3.3 % of the rows are cut" in caplog.text and "data.long_completions: drop" in caplog.text
    assert facts(recipe)["tokens"]["share_cut"] == 1 / 30
    assert not (Path(recipe["output_dir"]) / "rejected_rows.jsonl").exists()
    tokens = open_run(make_recipe(recipe)).table.open("tokens")
    assert all(tokens["kept"][:])
    assert len(tokens[4]["completion_ids"]) == 64
    assert tokenizer.eos_token_id not in tokens[4]["completion_ids"]
    assert all(tokens[i]["completion_ids"][-1] == tokenizer.eos_token_id for i in range(30) if i != 4)


def test_completions_that_are_all_too_long_are_refused(tmp_path, tiny_recipe, refused):
    message = refused(tiny_recipe(tmp_path, data={"max_completion_tokens": 3}))
    assert "data.max_completion_tokens (3)" in message and "data.long_completions: cut" in message


@pytest.mark.parametrize("model", ["llama on disk", "gpt2 on disk", "llama config", "gpt2 config"])
def test_limits_beyond_the_positions_of_the_model_are_refused(
    model, tmp_path, tiny_recipe, refused, tiny_llama_path, tiny_gpt2_path
):
    models = {
        "llama on disk": {"path": tiny_llama_path},
        "gpt2 on disk": {"path": tiny_gpt2_path},
        "llama config": {"config": {"model_type": "llama", "max_position_embeddings": MAX_POSITIONS}},
        "gpt2 config": {"config": {"model_type": "gpt2", "n_positions": MAX_POSITIONS}},
    }
    recipe = tiny_recipe(tmp_path, data={"max_prompt_tokens": 80})
    recipe["model"] = models[model] | {"tokenizer": tiny_llama_path}
    message = refused(recipe)
    assert "data.max_prompt_tokens + data.max_completion_tokens = 144" in message and "128" in message


def test_evaluation_beyond_the_positions_of_the_model_is_refused(tmp_path, tiny_recipe, refused):
    message = refused(tiny_recipe(tmp_path, evaluate={"max_new_tokens": 81}))
    assert "data.max_prompt_tokens + evaluate.max_new_tokens = 129" in message


# Rewards that an objective cannot be trained on.


@pytest.mark.parametrize("objective", ["wbc", "r_gold", "r_lol"])
def test_a_negative_reward_is_refused_by_an_objective_that_needs_none(objective, tmp_path, tiny_recipe, refused):
    rows = [row | {"reward": row["reward"] - 10} for row in scored_rows(60)]
    recipe = tiny_recipe(tmp_path, rows=rows, reward=RECORDED, policies={"mine": {"objective": objective}})
    message = refused(recipe, verb="train")
    assert "needs rewards >= 0" in message
    assert "'mine'" in message
    assert "reward.transform" in message
    assert not (tmp_path / "run" / "reference").exists(), "it is refused before the reference is fitted"


def test_rows_without_any_score_are_refused_before_the_reference_is_fitted(tmp_path, tiny_recipe, refused):
    rows = [{"score" if key == "reward" else key: value for key, value in row.items()} for row in scored_rows(60)]
    message = refused(tiny_recipe(tmp_path, rows=rows, reward=RECORDED))
    assert "no column 'reward' with a score" in message and "did you mean 'score'" in message
    assert "data.columns.reward" in message
    assert not (tmp_path / "run" / "reference").exists()


def test_a_reward_function_that_gives_nan_is_named_with_the_row(tmp_path, tiny_recipe, refused, monkeypatch):
    rows = scored_rows(60)
    rows[3]["prompt"] = "Odd?"
    source = "def score(prompts, completions):\n    return [float('nan' if p == 'Odd?' else 1) for p in prompts]\n"
    (tmp_path / "faulty_reward.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = tiny_recipe(
        tmp_path, rows=rows, reward={"functions": [{"type": "python", "function": "faulty_reward:score"}]}
    )
    message = refused(recipe)
    assert "reward function 'faulty_reward:score' gave nan for" in message
    assert "rows.jsonl:4" in message


def test_rewards_that_are_all_equal_leave_nothing_over(tmp_path, tiny_recipe, refused, caplog):
    rows = [row | {"reward": 0.1} for row in scored_rows(60)]
    message = refused(tiny_recipe(tmp_path, rows=rows, reward=RECORDED))
    assert "all rewards are equal (0.1)" in caplog.text
    assert "all recorded rewards are equal (0.1)" in message
    assert not (tmp_path / "run" / "reference").exists(), "it is refused before the reference is fitted"


def test_no_row_with_a_positive_advantage_is_refused(tmp_path, tiny_recipe, refused):
    # Values are clipped to declared bounds that lie above every reward.
    recipe = tiny_recipe(tmp_path, reward=RECORDED, value={"bounds": [100.0, 101.0]})
    message = refused(recipe, verb="train")
    assert "no training row has a positive advantage" in message


# The recipe.

UNKNOWN_KEYS = {
    "at the top": ({"polices": {}}, "unknown key 'polices'; did you mean 'policies'?"),
    "in a section": (
        {"data": {"max_prompt_token": 5}},
        "'data.max_prompt_token'; did you mean 'max_prompt_tokens'?",
    ),
    "two sections deep": (
        {"data": {"columns": {"promt": "x"}}},
        "unknown key 'data.columns.promt'; did you mean 'prompt'?",
    ),
    "in an optional section": (
        {"model": {"lora": {"rank": 8, "alhpa": 1}}},
        "'model.lora.alhpa'; did you mean 'alpha'?",
    ),
    "in train": (
        {"train": {"learning_rat": 1}},
        "unknown key 'train.learning_rat'; did you mean 'learning_rate'?",
    ),
    "in reference.train": (
        {"reference": {"train": {"max_step": 1}}},
        "unknown key 'reference.train.max_step'; did you mean 'max_steps'?",
    ),
    "in a policy": (
        {"policies": {"mine": {"objectiv": "nll"}}},
        "'policies.mine.objectiv'; did you mean 'objective'?",
    ),
}


@pytest.mark.parametrize("place", UNKNOWN_KEYS)
def test_an_unknown_recipe_key_names_the_nearest_valid_one(place, tmp_path, tiny_recipe, refused):
    override, expected = UNKNOWN_KEYS[place]
    message = refused(tiny_recipe(tmp_path, **override))
    assert expected in message
    assert f"{tmp_path}/recipe.yaml" in message
    assert not (tmp_path / "run").exists()


def test_a_key_unlike_any_lists_the_valid_ones(tmp_path, tiny_recipe, refused):
    message = refused(tiny_recipe(tmp_path, evaluate={"zzz": 1}))
    assert "unknown key 'evaluate.zzz'; valid here: max_prompts, " in message


def test_an_unknown_key_given_by_set_names_the_nearest_valid_one(tmp_path, tiny_recipe, refused):
    message = refused(tiny_recipe(tmp_path), "--set", "value.num_prompt=3")
    assert "unknown key 'value.num_prompt'; did you mean 'num_prompts'?" in message


@pytest.mark.parametrize("override", ["seed", "seed=[", "name.first=x"])
def test_a_malformed_set_is_quoted(override, tmp_path, tiny_recipe, refused):
    assert f"{override}" in refused(tiny_recipe(tmp_path), "--set", override)


def test_an_unknown_objective_names_the_nearest_before_anything_runs(tmp_path, tiny_recipe, refused):
    message = refused(tiny_recipe(tmp_path, policies={"mine": {"objective": "a_lol_sequence"}}))
    assert "'policies.mine.objective' is 'a_lol_sequence'; did you mean 'a_lol_seq'?" in message
    assert not (tmp_path / "run").exists()


def test_a_missing_key_and_a_wrong_value_are_named_together(tmp_path, tiny_recipe, refused):
    recipe = tiny_recipe(tmp_path, seed="many")
    del recipe["name"]
    message = refused(recipe)
    assert "missing key 'name'" in message
    assert "seed: Input should be a valid integer" in message


@pytest.mark.parametrize("text", ["", "a list of words", "a: [", "- 1"])
def test_a_recipe_that_is_no_mapping_is_named(text, refused):
    assert "recipe.yaml: " in refused(text)


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_a_recipe_that_is_not_there_is_named(name, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", str(tmp_path / name)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: no recipe at ")


def test_a_model_that_is_not_there_is_named_with_its_key(tmp_path, tiny_recipe, refused):
    message = refused(tiny_recipe(tmp_path, model={"path": str(tmp_path / "no-model")}))
    assert f"no model at '{tmp_path}/no-model' (key model.path)" in message


def test_a_folder_without_a_model_is_named_with_its_key(tmp_path, tiny_recipe, refused):
    (tmp_path / "empty").mkdir()
    message = refused(tiny_recipe(tmp_path, model={"path": str(tmp_path / "empty")}))
    assert f"no model at '{tmp_path}/empty' (key model.path)" in message


def test_a_faulty_judge_is_refused_before_anything_runs(tmp_path, tiny_recipe, refused):
    message = refused(tiny_recipe(tmp_path, evaluate={"judges": [{"type": "text", "function": "vadar"}]}))
    assert "did you mean 'vader'?" in message


def test_a_column_reward_that_names_another_column_is_refused(tmp_path, tiny_recipe, refused):
    message = refused(tiny_recipe(tmp_path, reward={"functions": [{"type": "column", "column": "score"}]}))
    assert "reads the column 'score'" in message
    assert "set data.columns.reward" in message


# The output folder and the disk.


def test_an_output_folder_of_another_recipe_is_left_alone(tmp_path, tiny_recipe, refused):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("name: somebody else's\n")
    message = refused(tiny_recipe(tmp_path))
    assert str(folder) in message and "'somebody else's'" in message and "'tiny'" in message
    assert "choose another output_dir" in message
    assert (folder / "recipe.yaml").read_text() == "name: somebody else's\n"


def test_an_output_folder_with_other_files_is_left_alone(tmp_path, tiny_recipe, refused):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    message = refused(tiny_recipe(tmp_path))
    assert "is not empty" in message and "choose another output_dir" in message
    assert [f.name for f in folder.iterdir()] == ["thesis.tex"]


def test_an_output_folder_that_is_a_file_is_named(tmp_path, tiny_recipe, refused):
    (tmp_path / "run").write_text("x")
    assert "is a file: choose another output_dir" in refused(tiny_recipe(tmp_path))


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "the disk is full ("),
        (errno.EDQUOT, "the disk is full ("),
        (errno.EROFS, "the disk is read-only ("),
        (errno.EACCES, "no permission for a file ("),
        (errno.EPERM, "no permission for a file ("),
    ],
)
def test_a_disk_that_cannot_be_written_is_named_with_the_file(
    number, expected, tmp_path, tiny_recipe, refused, monkeypatch
):
    def fail(self: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(number, "as the kernel says", str(self))

    recipe = Path(recipe_file(tmp_path, tiny_recipe(tmp_path)))
    monkeypatch.setattr("leftover.runs.run.Path.mkdir", fail)
    message = refused(recipe)
    assert f"error: {expected}{tmp_path}/run" in message


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),  # a write on an open file names no file
        RuntimeError("I/O error: No space left on device (os error 28)"),  # safetensors
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),  # torch.save
        OSError("4096 requested and 512 written"),  # numpy
    ],
)
def test_a_disk_that_fills_up_while_the_table_is_written_is_told_and_the_run_continues(
    error, tmp_path, tiny_recipe, refused, monkeypatch
):
    def fail(*args: Any) -> None:
        raise error

    recipe = tiny_recipe(tmp_path, policies={"nll": {"objective": "nll"}})
    with monkeypatch.context() as disk:
        disk.setattr("leftover.store.table.Table._write_shard", fail)
        message = refused(recipe)
    assert message.startswith("error: the disk is full; free some space, then run again: it continues")
    if isinstance(error, OSError) and error.errno:
        main(["prepare", recipe_file(tmp_path, recipe)])
        assert facts(recipe)["rows"]["read"] == 60


def test_a_limit_on_files_is_told(tmp_path, tiny_recipe, refused, monkeypatch):
    for error in (OSError(errno.EFBIG, "File too large"), RuntimeError("I/O error: File too large (os error 27)")):

        def fail(*args: Any, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as disk:
            disk.setattr("leftover.store.table.Table._write_shard", fail)
            assert "ulimit -f" in refused(tiny_recipe(tmp_path))


@pytest.mark.parametrize("folder", ["rows.jsonl/x", "/proc/x", "rows.jsonl", "x" * 300])
def test_an_output_folder_that_cannot_be_is_refused_before_anything_is_computed(
    folder, tmp_path, tiny_recipe, refused, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert "output_dir" in refused(tiny_recipe(tmp_path) | {"output_dir": folder})
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "recipe.yaml"}


def test_a_refused_recipe_leaves_no_folder_behind(tmp_path, tiny_recipe, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe(tmp_path) | {"output_dir": "runs/mine"}
    for faulty in (
        {"data": {"path": "none.jsonl"}},
        {"model": {"path": "nowhere"}},
        {"reward": {"functions": [{"type": "text", "function": "vadr"}]}},
        {"train": {"report_to": "nothing"}},
    ):
        refused(recipe | faulty)
        assert not (tmp_path / "runs").exists(), faulty
    (tmp_path / "runs").mkdir()
    refused(recipe | {"data": {"path": "none.jsonl"}})
    assert (tmp_path / "runs").is_dir(), "it was there before"


@pytest.mark.parametrize("output", ["/dev/null", "folder", "rows.jsonl/page.html", "/proc/page.html"])
@pytest.mark.parametrize("verb", ["inspect", "report", "generate"])
def test_no_file_takes_the_place_of_what_is_no_file(verb, output, tmp_path, tiny_recipe, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    recipe_file(tmp_path, tiny_recipe(tmp_path))
    given = {"inspect": ["rows.jsonl"], "report": ["recipe.yaml"], "generate": ["nowhere", "rows.jsonl"]}[verb]
    with pytest.raises(SystemExit) as stop:
        main([verb, *given, "--output", output])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "--output" in said and output.rpartition("/")[0] in said
    assert Path("/dev/null").is_char_device() and not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_at_the_first_file_does_not_block_the_folder(tmp_path, tiny_recipe, refused, monkeypatch):
    def half_write(self: Path, text: str, **kwargs: Any) -> None:
        with self.open("w") as file:
            file.write(text[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    recipe = Path(recipe_file(tmp_path, tiny_recipe(tmp_path, rows=[])))
    with monkeypatch.context() as disk:
        disk.setattr("leftover.runs.run.Path.write_text", half_write)
        assert "the disk is full" in refused(recipe)
    assert "the file is empty" in refused(recipe), "the folder is taken up again"


def test_a_file_that_ends_early_is_not_taken_for_the_users_stop(tmp_path, monkeypatch):
    """click turns any EOFError, as of a file cut short, into what Ctrl-D gives."""

    def cut_short(*_: Any, **__: Any) -> None:
        raise EOFError("Ran out of input")

    monkeypatch.setattr("leftover.recipe.files.load_recipe", cut_short)
    with pytest.raises(EOFError, match="Ran out of input"):
        main(["run", "recipe.yaml"])


def test_debug_shows_the_traceback_of_a_mendable_error(tmp_path):

    with pytest.raises(UserError, match="no recipe"):
        main(["--debug", "run", str(tmp_path / "absent.yaml")])


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path):
    for arguments in (["--debug", "run", "no.yaml"], ["run", "no.yaml", "--debug"]):
        with pytest.raises(UserError, match=r"no recipe at 'no\.yaml'"):
            main(arguments)


def test_a_corrupt_weights_file_is_named(tmp_path, tiny_recipe, tiny_llama_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_llama_path, broken)
    (broken / "model.safetensors").write_bytes(b"not weights")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(tmp_path, model={"path": str(broken)})))
    with pytest.raises(SystemExit) as error:
        main(["prepare", str(recipe)])
    assert error.value.code == 2
    assert str(broken) in capsys.readouterr().err


def test_numbers_in_exponent_form_are_numbers_and_texts_are_refused(tmp_path, tiny_recipe, refused):
    from leftover.recipe.files import load_recipe

    recipe = recipe_file(tmp_path, tiny_recipe(tmp_path))
    for text in ("1e-5", "2E-3", "1.5e-5"):
        assert load_recipe(recipe, [f"train.learning_rate={text}"]).train["learning_rate"] == float(text)
    message = refused(Path(recipe), "--set", "train.max_steps=abc")
    assert "'train.max_steps' is a number" in message


def test_a_misspelt_choice_of_a_policy_is_refused_with_the_nearest(tmp_path: Path, tiny_recipe: Callable) -> None:
    recipe = tiny_recipe(tmp_path, policies={"best": {"objective": "nll", "rows": "lefover"}})
    with pytest.raises(UserError, match=r"policies\.best\.rows' is 'lefover'; did you mean 'leftover'"):
        make_recipe(recipe)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("train.accelerator_config=../../x", "'accelerator_config' is '../../x'"),
        ("train.torch_compile_mode=xyz", "torch_compile_mode): Unrecognized mode=xyz"),
        ("train.use_liger_kernel=true", "use_liger_kernel: true needs the package liger-kernel"),
        ("reference.train.lr_scheduler_kwargs={a: 1}", "lr_scheduler_kwargs)"),
        ("policies.a_lol_seq.optim_args=xyz", "optim_args"),
        ("train.log_level_replica=''", "'train.log_level_replica' is ''"),
        ("train.adam_beta1=null", "'train.adam_beta1' is a number, got nothing"),
        ("model.lora.target_modules=[x]", "model.lora.target_modules: "),
        ("reference.origin=xyz", "reference.origin: "),
        ("train.fsdp=full_shard", "fsdp parts a model among processes"),
        ("train.neftune_noise_alpha=5", "'train.neftune_noise_alpha' cannot be set here"),
        ("data.path=''", "data.path: "),
        ("data.path=[]", "data.path: "),
    ],
)
def test_what_a_training_would_refuse_hours_later_is_refused_before_a_row_is_read(
    setting: str, expected: str, tmp_path: Path, tiny_recipe: Callable, refused: Any
) -> None:
    assert expected in refused(tiny_recipe(tmp_path), "--set", setting)
    assert not list((tmp_path / "run/table").glob("*"))


def test_a_whole_number_is_taken_where_an_optimizer_wants_a_fraction(tmp_path: Path) -> None:
    args = LoLConfig(str(tmp_path), adam_beta1=0, adam_beta2=0, learning_rate=1)
    assert [type(value) for value in (args.adam_beta1, args.adam_beta2, args.learning_rate)] == [float] * 3
    try_out(args)


def test_nothing_is_written_over_what_a_command_reads(
    tmp_path: Path, tiny_run: Callable, capsys: Any, rows_file: Callable
) -> None:
    recipe, rows = tiny_run(tmp_path), Path(rows_file(scored_rows(20)))
    run, before = recipe["output_dir"], rows.read_bytes()
    for words in (
        ["inspect", str(rows), "--output", str(rows)],
        ["report", run, "--output", str(rows)],
        ["report", run, "--output", f"{run}/manifest.json"],
        ["generate", recipe["model"]["path"], str(rows), "--output", str(rows), "--overwrite"],
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert "name another" in capsys.readouterr().err
    assert rows.read_bytes() == before
    (Path(run) / "report.html").unlink()
    (Path(run) / "report.html").symlink_to(rows)
    for words in (["report", run], ["run", recipe_file(tmp_path, recipe)]):
        with pytest.raises(SystemExit):
            main(words)
        assert "report.html is a link that leads out of the run's folder" in capsys.readouterr().err
    assert rows.read_bytes() == before


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EEXIST, "a file stands in the place of a folder, or the reverse (x)"),
        (errno.EIO, "the disk or device failed to read or write (x)"),
        (errno.EMFILE, "the system opens no more files for this process (x)"),
    ],
)
def test_other_errors_of_the_system_have_a_remedy(number: int, expected: str) -> None:
    assert str(remedy_of(OSError(number, "as the kernel says", "x"))).startswith(expected)


def test_a_thread_that_cannot_be_started_is_told() -> None:
    assert "starts no more threads" in str(remedy_of(RuntimeError("can't start new thread")))


def test_a_working_folder_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = FileNotFoundError(errno.ENOENT, "No such file or directory")
    assert remedy_of(gone) is None
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError) as error:
        load_reward({"type": "python", "function": "leftover.demo.grammar:score_answers"})
    assert "the folder that you run in is not there any more" in str(remedy_of(error.value))
