"""The same seed gives the same run on one process and on two."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.training.test_methods import complete_rows

# Groups; a value trained along, of whose gradients the Trainer knows nothing; numbers of the whole step; token budgets.
OBJECTIVES = ("a_lol_seq", "dpo", "dro", "kto", "var", "nll:60", "pro:120")


def launch(model: str, rows: Path, output: Path, processes: int, accumulation: int) -> dict:
    output.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    script = [str(Path(__file__).with_name("two_processes.py")), model, str(rows), str(output)]
    done = subprocess.run(
        [*command, *script, str(accumulation), str(processes), *OBJECTIVES],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(output / "result.pt", weights_only=True)


def test_two_processes_train_the_weights_that_one_with_twice_the_accumulation_trains(
    tiny_llama_path: str, tokenizer: Any, tmp_path: Path
) -> None:
    rows = tmp_path / "rows"
    complete_rows(tiny_llama_path, tokenizer).save_to_disk(str(rows))
    one = launch(tiny_llama_path, rows, tmp_path / "one", processes=1, accumulation=4)
    two = launch(tiny_llama_path, rows, tmp_path / "two", processes=2, accumulation=2)
    for objective in OBJECTIVES:
        for name, weight in one[objective]["weights"].items():
            torch.testing.assert_close(two[objective]["weights"][name], weight, atol=2e-4, rtol=0, msg=objective)
        for a, b in zip(one[objective]["log"], two[objective]["log"], strict=True):
            for name in ("loss", "reward/mean", "num_tokens", "importance_weight/max", "kto/kl", "dro/value"):
                if name in a:
                    assert abs(a[name] - b[name]) < 1e-3 * max(1, abs(a[name])), (objective, name)
