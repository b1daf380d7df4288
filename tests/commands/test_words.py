"""What commands say at 80 columns: help, results and what to do next."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from leftover import cli
from leftover.evaluation.tables import Grid
from leftover.report.write import print_table
from tests.monitoring.test_terminal import FakeTerminal, terminal  # noqa: F401 (a fixture)


@pytest.mark.parametrize("command", [None, *sorted(cli.cli.commands)])
def test_help_is_cut_nowhere_at_80_columns(command: str | None) -> None:
    found = CliRunner().invoke(cli.cli, [*([command] if command else []), "--help"], terminal_width=80)
    assert found.exit_code == 0
    assert max(map(len, found.output.splitlines())) <= 80
    cut = [line for line in found.output.splitlines() if re.search(r"[a-z,;:.]\.\.\.$", line)]
    assert cut == []


def test_a_run_speaks_before_it_loads_what_takes_seconds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "leftover", "run", str(tmp_path / "nowhere.yaml")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60).stderr.splitlines()
    assert said[0].startswith("Leftover starts") and said[1].startswith("error: ") and len(said) == 2


def test_no_number_of_a_table_is_cut_at_80_columns(terminal: FakeTerminal, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("COLUMNS", "80")
    header = ["policy", "reward", "− reference [95 %]", "win rate", "length", "KL"]
    told = "+0.167 [-0.262, +0.595] (too few to tell: 6 families)"
    cells = [["a_policy_with_a_very_long_name_of_its_own", "0.167", told, "0.58", "108.0", "0.03"]]
    print_table({"name": "tiny", "primary": "sampled"}, Grid(header, cells))
    said = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert "…" not in said and max(map(len, said.splitlines())) <= 80
    for whole in ("win rate", "108.0", "0.58", "[-0.262,"):
        assert whole in said


def test_the_end_names_the_report_and_what_can_be_done_next(capsys: Any) -> None:
    folder = "runs/my rows"
    cli._show_end(folder, better=True)
    better = capsys.readouterr().out
    cli._show_end(folder, better=False)
    other = capsys.readouterr().out
    assert better.startswith(f"Report: {Path(folder) / 'report.html'}")
    assert "leftover export 'runs/my rows'" in better and "leftover generate 'runs/my rows'" in better
    assert "leftover inspect 'runs/my rows'" in other and "export" not in other
