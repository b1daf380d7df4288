"""The recipe hha_135m with all methods on a GPU: `python -m benchmarks.gpu --real`. Writes the reproduction.

One seed after the other, so that what is finished when the minutes are over is a whole comparison; what is missing is
said. The same command goes on where it stopped.
"""

import argparse
import datetime
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import write_tiny
from benchmarks.process import ROOT

RECIPE = ROOT / "recipes/hha_135m.yaml"
MODEL, ENCODER = "HuggingFaceTB/SmolLM2-135M-Instruct", ".models/minilm-l6"  # as the recipe names them
WRITTEN = ROOT / "reproductions/hha_135m_gpu.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the recipe hha_135m, with --real")
    group.add_argument("--real", nargs="?", const=MODEL, metavar="MODEL", help=f"a folder or Hub id ({MODEL})")
    group.add_argument("--encoder", default=ENCODER, metavar="MODEL", help=f"of rewards and judges ({ENCODER})")
    group.add_argument("--methods", default="all", help="as of `leftover compare` (all)")
    group.add_argument("--seeds", type=int, default=3)
    group.add_argument("--jobs", type=int, help="trainings at once (4 on a GPU)")
    group.add_argument("--minutes", type=float, default=10.0, help="when to stop; what is missing then is said (10)")
    group.add_argument("--folder", type=Path, default=ROOT / "runs/hha_135m_gpu", help="of the run")


def reproduce(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run" if args.tiny else args.folder.resolve()
        recipe = tiny_recipe(Path(scratch)) if args.tiny else RECIPE.read_text(encoding="utf-8")
        recipe = recipe.replace(MODEL, _resolved(args.real)).replace(ENCODER, _resolved(args.encoder))
        path = folder.with_name(f"{folder.name}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(recipe, encoding="utf-8")
        jobs = args.jobs or (4 if args.device == "cuda" else 1)
        took, planned = in_time(path, folder, args.methods, args.seeds, jobs, 60 * args.minutes)
        text = written(args, folder, took, planned)
    print(text)
    if not args.tiny:
        WRITTEN.write_text(text, encoding="utf-8")


def _resolved(model: str) -> str:
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def in_time(
    recipe: Path, folder: Path, methods: str, seeds: int, jobs: int, seconds: float
) -> tuple[list[float], list[str]]:
    """Compare with one seed, then with two, and so on, until the time is over.

    Returns the seconds of every finished comparison and the methods that apply. If the time is over before the first
    one is finished, it is of the methods that are.
    """
    end, took = time.monotonic() + seconds, list[float]()
    while len(took) < seeds and (left := end - time.monotonic()) > 0:
        if (found := compare(recipe, folder, methods, len(took) + 1, jobs, left)) is None:
            break
        took.append(found)
    planned, done = methods_of(folder)
    if not took:
        if not done:
            sys.exit(f"no method was finished in {seconds / 60:g} minutes: allow more, the same command goes on")
        found = compare(recipe, folder, ",".join(done), 1, jobs)
        assert found is not None
        took.append(found + seconds)
    return took, planned


def compare(
    recipe: Path, folder: Path, methods: str, seeds: int, jobs: int, timeout: float | None = None
) -> float | None:
    """`leftover compare`: its seconds; None if the time was over. Ends the script if it fails without a result."""
    options = {"--methods": methods, "--seeds": seeds, "--jobs": jobs, "--set": f"output_dir={folder}"}
    command = [sys.executable, "-m", "leftover.cli", "compare", str(recipe), "--set", "train.bf16=true"]
    start, before = time.monotonic(), _results(folder)
    try:
        done = subprocess.run([*command, *(str(p) for o in options.items() for p in o)], timeout=timeout, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return None
    # With a status of its own it still wrote the comparison of the runs that did not fail.
    if done.returncode and _results(folder) == before:
        sys.exit(f"leftover compare failed with status {done.returncode}")
    return time.monotonic() - start


def _results(folder: Path) -> dict[str, Any] | None:
    path = folder / "comparison.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def methods_of(folder: Path) -> tuple[list[str], list[str]]:
    """The methods of a comparison, and those of them that are evaluated with the first seed."""
    from leftover.runs.finished import FinishedRun
    from leftover.runs.names import policy_artifact, policy_subject

    if not (folder / "recipe.yaml").is_file():
        return [], []
    run = FinishedRun(folder)
    planned, seed = list(run.recipe.policies), run.recipe.seeds[0]
    return planned, [p for p in planned if run.is_evaluated(policy_subject(p, seed), policy_artifact(p, seed))]


def written(args: argparse.Namespace, folder: Path, took: list[float], planned: list[str]) -> str:
    """The reproduction as Markdown."""
    import transformers

    from leftover.commands.compare.tables import cost_grid, part_grids, result_grid
    from leftover.evaluation.tables import markdown_table

    results = _results(folder)
    assert results is not None
    decoding = results["primary"]
    missing = [f"{len(took)} of {args.seeds} seeds"] if len(took) < args.seeds else []
    missing += [f"the method `{name}`" for name in planned if name not in results["methods"]]
    missing += [f"`{run}`, which failed" for run in results["failed"]]
    model = "a tiny model of random weights" if args.tiny else f"{args.real}, rewards and judges by {args.encoder}"
    times = ", ".join(f"{seconds / 60:.1f}" for seconds in took)
    lines = [
        "# Methods on Helpful-and-Harmless conversations, a real model on a GPU",
        "",
        f"{datetime.date.today().isoformat()}, {device_name(args.device)}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, bf16 autocast. The recipe `hha_135m` with {model}.",
        "",
        f"```sh\npython -m benchmarks.gpu {shlex.join(sys.argv[1:])}\n# minutes, seed by seed: {times}\n```",
        "",
        f"Seeds {', '.join(map(str, results['seeds']))}. "
        + (f"Not finished in {args.minutes:g} minutes: {', '.join(missing)}." if missing else "Nothing is missing."),
        "",
        f"## Results, {decoding} completions",
        "",
        markdown_table(*result_grid(results, decoding)),
        "",
    ]
    for title, grid in part_grids(results, decoding).items():
        lines += [f"{title}:", "", markdown_table(*grid), ""]
    lines += [*(f"- `{name}`: n/a, {reason}" for name, reason in results["not_applicable"].items()), ""]
    return "\n".join([*lines, "## What a run took", "", markdown_table(*cost_grid(results)), ""])


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def tiny_recipe(scratch: Path) -> str:
    """Stands in for the recipe: a small model, small rows, a reward that costs nothing."""
    from leftover.demo.grammar import make_rows

    rows = scratch / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in make_rows(60, seed=0)), encoding="utf-8")
    content = {
        "name": "hha_135m",
        "output_dir": "taken from the command line",
        "model": {"path": write_tiny(scratch / "model"), "lora": {}},
        "data": {"path": str(rows)},
        "reward": {"functions": [{"type": "python", "function": "leftover.demo.grammar:score_answers"}]},
        "reference": {"source": "as_is"},
        "value": {"num_prompts": 16, "candidates": ["constant"]},
        "train": {"max_steps": 2, "per_device_train_batch_size": 4, "eval_strategy": "steps", "eval_steps": 2},
        "evaluate": {"max_prompts": 4, "max_selection_prompts": 4, "max_new_tokens": 4},
    }
    return json.dumps(content)
