"""The runs of a comparison: one after the other in this process, or several at once, each in its own."""

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen

from leftover.commands.compare.checkpoints import Checkpoints
from leftover.errors import UserError
from leftover.evaluation.run import Evaluation
from leftover.runs.names import policy_artifact, policy_subject, slug
from leftover.runs.run import Run
from leftover.training.run import policy_key, train_one

log = logging.getLogger(__name__)

_TAIL_LINES = 5


@dataclass(frozen=True)
class Job:
    """A policy to train with one seed and to evaluate; without a policy, the reference to evaluate.

    `checkpoints`: on the selection prompts, for a frontier; else on the test prompts.
    """

    policy: str | None
    seed: int = 0
    evaluate: bool = True
    checkpoints: bool = False

    def __str__(self) -> str:
        return "reference" if self.policy is None else policy_subject(self.policy, self.seed)

    def evaluation(self, run: Run) -> Evaluation | Checkpoints:
        """What evaluates this job, and those like it."""
        return Checkpoints(run) if self.checkpoints else Evaluation(run)

    def work(self, evaluation: Evaluation | Checkpoints) -> None:
        """Train and evaluate, unless that is done already."""
        if self.policy is not None:
            train_one(evaluation.run, self.policy, self.seed)
        if self.evaluate:
            evaluation.of(str(self))

    def is_done(self, evaluation: Evaluation | Checkpoints) -> bool:
        """Whether the manifest has all of it under the recipe's keys."""
        run = evaluation.run
        if self.policy is not None:
            artifact = policy_artifact(self.policy, self.seed)
            if not run.manifest.status(artifact, policy_key(run, self.policy, self.seed)).finished:
                return False
            run.manifest.tell_damaged_logs(artifact)
        return not self.evaluate or evaluation.is_done(str(self))


def run_jobs(run: Run, jobs: Sequence[Job], num_processes: int = 1) -> dict[Job, str]:
    """Do the jobs that are not done; one that fails does not stop the others. Returns job -> the end of its log."""
    evaluation = jobs[0].evaluation(run)
    missing = [job for job in jobs if not job.is_done(evaluation)]
    if not missing:
        return {}
    log.info("compare: %d of %s still to do", len(missing), counted(len(jobs)))
    failed = _in_processes(run, missing, num_processes) if num_processes > 1 else _here(evaluation, missing)
    for job, said in failed.items():
        log.error("compare: %s failed (%s):\n%s", job, log_path(run.folder, job), said)
    return failed


def log_path(folder: Path, job: Job) -> Path:
    """The log of a run in its own process; of any other, why it failed. Makes the folder of logs."""
    (folder / "logs").mkdir(exist_ok=True)
    return folder / "logs" / f"{slug(str(job))}.log"


def _here(evaluation: Evaluation | Checkpoints, jobs: Sequence[Job]) -> dict[Job, str]:
    failed: dict[Job, str] = {}
    for job in jobs:
        try:
            job.work(evaluation)
        except Exception as error:  # whatever it is, the other runs go on
            log_path(evaluation.run.folder, job).write_text(traceback.format_exc(), encoding="utf-8")
            failed[job] = str(error) or repr(error)
    return failed


def _in_processes(run: Run, jobs: Sequence[Job], num_processes: int) -> dict[Job, str]:
    failed, started = dict[Job, str](), list[Popen]()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads_each(min(num_processes, len(jobs))))}

    def work(job: Job) -> tuple[Job, int, float]:
        """The status and the seconds of its process."""
        began = time.monotonic()
        command = [sys.executable, "-m", "leftover.commands.compare.worker", str(run.folder), json.dumps(asdict(job))]
        with (
            log_path(run.folder, job).open("w", encoding="utf-8") as said,
            # The worker ends when its standard input does, so that none outlives this process.
            Popen(command, stdin=PIPE, stdout=said, stderr=STDOUT, env=environment) as process,
        ):
            started.append(process)
            return job, process.wait(), time.monotonic() - began

    try:
        with ThreadPool(num_processes) as pool:
            for number, (job, status, seconds) in enumerate(pool.imap_unordered(work, jobs), start=1):
                if status:
                    failed[job] = _tail(log_path(run.folder, job), status)
                else:
                    log.info("compare: %s done in %.0f s, %s left", job, seconds, counted(len(jobs) - number))
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()
        run.manifest.reload()
    return failed


def threads_each(num_processes: int) -> int:
    """An equal part of the processor cores that this process may use, and no more than it was given itself."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores // num_processes, int(own) if own.isdecimal() else cores))


def _tail(path: Path, status: int) -> str:
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "\n".join(lines[-_TAIL_LINES:]) or f"it ended with status {status} and printed nothing"


def raise_for(failed: dict[Job, str], num_jobs: int) -> None:
    """UserError with the runs that failed, if any did."""
    if failed:
        reasons = "; ".join(f"{job}: {said.splitlines()[-1]}" for job, said in failed.items())
        again = "it" if len(failed) == 1 else "them"
        raise UserError(f"{len(failed)} of {counted(num_jobs)} failed, the same command tries {again} again. {reasons}")


def counted(runs: int) -> str:
    """A number of runs in words: 1 run, 2 runs."""
    return f"{runs} run{'s' * (runs != 1)}"
