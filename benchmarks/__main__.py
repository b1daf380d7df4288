"""`make bench`: everything side by side in one run, written to benchmarks/results.md. `--quick` tries it out."""

import argparse
import logging
import warnings
from pathlib import Path

RESULTS = Path(__file__).with_name("results.md")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="of every contestant of the training step")
    parser.add_argument("--quick", action="store_true", help="one turn, 10,000 rows at most, no results.md")
    parser.add_argument("--only", choices=("steps", "others"), help="a part alone, no results.md")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)

    import torch

    from benchmarks import others, report, steps

    torch.set_num_threads(1)
    rest = ""
    if args.only != "steps":
        lines = [others.reference_pass_rate(), others.value_head_rate(), others.generation_rate()]
        sizes = (1_000, 10_000) if args.quick else (1_000, 10_000, 100_000)
        many = [others.many_rows_apart(size) for size in sizes]
        rest = report.others_section([line for line in lines if line], others.import_times(), many)
        print(rest, flush=True)
    if args.only != "others":
        for measured in steps.take_turns(steps.ENTRIES, 1 if args.quick else args.turns):
            section = report.steps_section(measured)
            print(section, flush=True)
            if not args.quick and not args.only:  # after every turn, so that a run that is ended early is not lost
                RESULTS.write_text(report.page([section, rest]), encoding="utf-8")


if __name__ == "__main__":
    main()
