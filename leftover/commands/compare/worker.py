"""One run of a comparison in a process of its own.

`python -m leftover.commands.compare.worker RUN --policy NAME --seed N`

The run has to be prepared, and its recipe.yaml to name the policy. Ends when standard input does.
"""

import argparse
import logging
import os
import sys
import threading


def work(folder: str, policy: str | None, seed: int, evaluate: bool) -> None:
    """Do one job of the run in `folder`."""
    from leftover import pipeline
    from leftover.commands.compare.jobs import Job
    from leftover.evaluation.run import Evaluation
    from leftover.recipe.files import load_recipe
    from leftover.runs.run import Run

    run = Run(load_recipe(folder), folder)
    said = logging.getLogger("leftover")
    said.setLevel(logging.WARNING)  # all of it is reused
    pipeline.prepare(run)
    said.setLevel(logging.INFO)
    Job(policy, seed, evaluate).work(Evaluation(run))


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):  # not buffered: no lock that the interpreter would want at its end
        pass
    os._exit(1)


def main() -> None:
    """Exit status 0, or 1 with the reason as the last thing that is written."""
    parser = argparse.ArgumentParser(prog="leftover.commands.compare.worker")
    parser.add_argument("folder")
    parser.add_argument("--policy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-only", action="store_true")
    given = parser.parse_args()
    threading.Thread(target=_end_with_parent, daemon=True).start()

    from leftover.errors import UserError
    from leftover.monitoring.terminal import set_up_logging

    set_up_logging()
    try:
        work(given.folder, given.policy, given.seed, not given.train_only)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
