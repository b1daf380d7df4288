"""`make bench-rows`: tables of up to five million rows with recorded scores, a tiny model. Memory: beyond 100 rows.

python -m benchmarks.many_rows [ROWS ...]     each in a process of its own; 10,000, 100,000, 1,000,000 and 5,000,000
"""

import argparse
import logging
import warnings

from benchmarks import others

SIZES = (10_000, 100_000, 1_000_000, 5_000_000)
_EMPTY = 100  # rows of what is taken for the empty program


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_rows", description=__doc__)
    parser.add_argument("rows", nargs="*", type=int, default=SIZES)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    empty = others.many_rows_apart(_EMPTY, recorded=True)
    print("| rows | prepare, ms a row | train, s | opening, s | inspect, s | own memory, MiB | own bytes a row |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for size in parser.parse_args().rows:
        found = others.many_rows_apart(size, recorded=True)
        own = max(found[stage] - empty[stage] for stage in ("prepare_mib", "train_mib"))
        print(
            f"| {size:,} | {1e3 * found['prepare_s'] / size:.3f} | {found['train_s']:.1f} | {found['open_s']:.2f} "
            f"| {found['inspect_s']:.1f} | {own:.0f} | {own * 2**20 / size:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
