"""One contestant in a process of its own: prints one JSON line with its steps and its peak memory."""

import argparse
import json
import logging
import sys
import warnings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant")
    parser.add_argument("setting", type=json.loads, help="fields of a Setting as JSON")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)

    import torch

    from benchmarks.contestants import CONTESTANTS
    from benchmarks.process import peak_mib
    from benchmarks.setting import Setting

    setting = Setting(**args.setting)
    if setting.device == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(setting.seed)
    seconds, lengths = zip(*CONTESTANTS[args.contestant](setting), strict=True)
    peak = peak_mib() if setting.device == "cpu" else torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps({"seconds": seconds, "lengths": lengths, "peak_mib": peak}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
