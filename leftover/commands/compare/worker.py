"""One run of a comparison in its own process.

`python -m leftover.commands.compare.worker RUN JOB`, the fields of a Job as JSON

The folder holds a prepared run whose recipe.yaml names the policy. The process ends when its standard input does.
"""

import json
import logging
import os
import sys
import threading


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):  # unbuffered: the interpreter wants no lock at its end
        pass
    os._exit(1)


def main() -> None:
    """Exit status 0, or 1 with the reason as the last line."""
    folder, job = sys.argv[1:]
    threading.Thread(target=_end_with_parent, daemon=True).start()

    from leftover import pipeline
    from leftover.commands.compare.jobs import Job
    from leftover.errors import UserError
    from leftover.monitoring.terminal import set_up_logging
    from leftover.recipe.files import load_recipe
    from leftover.runs.run import Run
    from leftover.trust import allow_code

    allow_code()  # the command that started this one has looked at whose recipe it is
    set_up_logging()
    log = logging.getLogger("leftover")
    try:
        run = Run(load_recipe(folder), folder)
        log.setLevel(logging.WARNING)  # all of it is reused
        pipeline.prepare(run)
        log.setLevel(logging.INFO)
        asked = Job(**json.loads(job))
        asked.work(asked.evaluation(run))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
