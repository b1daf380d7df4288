"""`make bench`: everything side by side in one run, written to benchmarks/results.md. `--quick` tries it out."""

import argparse
import logging
import warnings
from pathlib import Path

RESULTS = Path(__file__).with_name("results.md")
REAL = ".models/smollm2-135m-instruct"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="of every contestant")
    parser.add_argument("--quick", action="store_true", help="one turn, 10,000 rows at most, nothing written")
    parser.add_argument("--only", choices=("steps", "others", "real"), help="one part; results.md keeps the rest")
    parser.add_argument("--real", default=REAL, metavar="FOLDER", help=f"of a real model (default: {REAL})")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)

    import torch

    from benchmarks import end_to_end, others, report, steps

    torch.set_num_threads(1)
    turns = 1 if args.quick else args.turns
    if args.only in (None, "steps"):
        for measured in steps.take_turns(steps.ENTRIES, turns):
            # After every turn, so that a run that is ended early is not lost.
            keep(report.steps_section(measured), args.quick)
    if args.only in (None, "others"):
        lines = [others.reference_pass_rate(), others.value_head_rate(), others.generation_rate()]
        sizes = (1_000, 10_000) if args.quick else (1_000, 10_000, 100_000)
        many = [others.many_rows_apart(size) for size in sizes]
        section = report.others_section([line for line in lines if line], others.import_times(), many)
        keep(section, args.quick)
    if args.only in (None, "real"):
        if not (Path(args.real) / "config.json").is_file():
            print(
                f"no model at '{args.real}', so its section is left as it is: `python ../shared/models/get_models.py "
                ".models` makes one, --real FOLDER names another"
            )
            return
        both = zip(
            steps.take_turns(steps.real_entries(args.real), turns), end_to_end.take_turns(args.real, turns), strict=True
        )
        for measured, (finished, source) in both:
            keep(report.real_section(args.real, measured, finished, source), args.quick)


def keep(section: str, quick: bool) -> None:
    """Print a section; unless in a hurry, put it into results.md in place of the earlier one."""
    from benchmarks import report

    print(section, flush=True)
    if not quick:
        before = RESULTS.read_text(encoding="utf-8") if RESULTS.is_file() else ""
        RESULTS.write_text(report.page(before, section), encoding="utf-8")


if __name__ == "__main__":
    main()
