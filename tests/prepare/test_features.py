"""The features of prompts: once a prompt, in 16 bits, and those of tables of earlier versions."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from leftover import pipeline
from leftover.models.reference import reference_pass
from leftover.prepare.features import PROMPT_FEATURES, half, prompt_features
from leftover.recipe.files import make_recipe
from leftover.runs.claim import open_run
from leftover.store.sealed import read_sealed, write_sealed
from leftover.store.table import column, equals, list_lengths
from tests.conftest import scored_rows


def prepared(folder: Path, tiny_recipe: Callable, objective: str):
    rows = [
        row | {"completion": row["completion"] + end} for row in scored_rows(20) for end in ("", " Yes.", " No " * 40)
    ]
    run = open_run(make_recipe(tiny_recipe(folder, rows=rows, policies={"p": {"objective": objective}})))
    pipeline.prepare(run)
    return run


def test_the_first_kept_row_of_every_prompt_has_its_features(tmp_path: Path, tiny_recipe: Callable) -> None:
    run = prepared(tmp_path, tiny_recipe, "a_lol_seq")
    table = run.table.open("tokens", "split", "reference")
    has, kept = list_lengths(table, PROMPT_FEATURES) > 0, equals(table, "kept", True)
    assert not kept.all() and not has[~kept].any()
    assert sorted(column(table, "group")[has]) == sorted(set(column(table, "group")[kept]))
    assert table.features[PROMPT_FEATURES].feature.dtype == "float16"
    places = np.flatnonzero(has)[::-3]
    rows = [{"prompt_ids": table[int(i)]["prompt_ids"], "completion_ids": [5]} for i in places]
    _, expected = reference_pass(run.models.reference(), run.models.tokenizer, rows)
    np.testing.assert_allclose(prompt_features(table)[places], expected, rtol=2e-3, atol=1e-4)


def test_dro_reads_them_in_every_row_and_takes_those_of_an_earlier_table(tmp_path: Path, tiny_recipe: Callable) -> None:
    run = prepared(tmp_path, tiny_recipe, "dro")
    table = run.table.open("tokens", "split", "reference", "features")
    kept, group, features = equals(table, "kept", True), column(table, "group"), prompt_features(table)
    for i in np.flatnonzero(kept)[::7]:
        first = int(np.flatnonzero(kept & (group == group[i]))[0])
        assert table[int(i)]["prompt_features"] == features[np.array([first])][0].tolist()
    run.close()
    # An earlier version stored them in every row of the block `reference`.
    shard = run.folder / "table" / "reference" / "00000.arrow"
    every = np.array(table["prompt_features"][:], np.float32)
    old = pa.table({
        "reference_logprobs": run.table.open("reference").data.column("reference_logprobs").combine_chunks(),
        "prompt_features": pa.FixedSizeListArray.from_arrays(pa.array(every.reshape(-1)), every.shape[1]),
    })  # fmt: skip
    with pa.OSFile(str(shard), "wb") as sink, pa.ipc.new_stream(sink, old.schema) as writer:
        writer.write_table(old)
    entries = read_sealed(run.folder / "table" / "manifest.json")
    del entries["features"], entries["reference"]["files"]  # which that version did not note
    write_sealed(run.folder / "table" / "manifest.json", entries)
    shutil.rmtree(run.folder / "table" / "features")
    again = open_run(run.recipe)
    pipeline.prepare(again)
    assert not again.table.has("features")
    pipeline.train(again)
    assert again.manifest.is_complete("policy p, seed 0")


def test_numbers_beyond_16_bits_are_its_ends() -> None:
    assert half(np.array([1e6, -1e6, 0.5], np.float32)).tolist() == [65504, -65504, 0.5]
