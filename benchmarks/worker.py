"""One contestant in a process of its own: prints one JSON line with its steps and its peak resident memory."""

import argparse
import json
import logging
import sys
import warnings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant")
    parser.add_argument("--vocabulary", type=int, default=50_257)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1, help="first steps that are not measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="small rows and a small model, to try it out")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)

    import torch

    from benchmarks.contestants import CONTESTANTS, Setting
    from benchmarks.others import peak_mib

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    setting = Setting(args.vocabulary, args.bf16, args.steps, args.seed, args.tiny)
    steps = list(CONTESTANTS[args.contestant](setting))[args.warmup - 1 :]
    print(json.dumps({"seconds": [s for s, _ in steps], "tokens": [t for _, t in steps], "peak_mib": peak_mib()}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
