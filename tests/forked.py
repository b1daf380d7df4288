"""Processes of their own, forked: one that imports torch and transformers again takes ten seconds to begin."""

import logging
import os
import socket
import sys
from collections.abc import Callable
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import IO, Self

from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.multiprocessing import start_processes


def forked(work: Callable[[], object], output: Path) -> ForkProcess:
    """Start a process that does `work` and appends what it says to the file `output`."""

    def inside() -> None:
        sys.stdout = sys.stderr = output.open("a", encoding="utf-8", buffering=1)
        logging.getLogger().handlers.clear()  # pytest's
        work()

    process = get_context("fork").Process(target=inside)
    process.start()
    return process


class ForkedModule:
    """What `Popen([python, "-m", MODULE, *arguments], stdin=PIPE, stdout=file)` is, forked."""

    def __init__(self, command: list[str], *, stdout: IO[str], **_: object):
        reader, self.writer = os.pipe()
        module = import_module(command[2])

        def work() -> None:
            os.dup2(reader, 0)
            sys.stdin, sys.argv = os.fdopen(0), command[2:]
            module.main()

        self.process = forked(work, Path(stdout.name))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        os.close(self.writer)

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def terminate(self) -> None:
        self.process.terminate()


def as_ranks(number: int, work: Callable[..., None], *arguments: object) -> None:
    """Call `work(*arguments)` in so many processes at once, which torch.distributed takes for the ranks of one job."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start_processes(_as_rank, (number, port, work, arguments), nprocs=number, start_method="fork")


def _as_rank(rank: int, number: int, port: int, work: Callable[..., None], arguments: tuple) -> None:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
    os.environ |= {name: str(value) for name, value in ranks.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    for state in (AcceleratorState, GradientState, PartialState):  # those of the process that forked
        state._reset_state()
    work(*arguments)
