"""The processes of one launch (torchrun, accelerate): which one this is, its share of work, waiting for the others.

All of them run the same program on the same rows. What costs time is shared row by row (`shared`); the first process
alone writes files and talks (`is_main_process`), and the others read what it wrote once it says so (`told`, `wait`).
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from leftover.errors import UserError, first_line

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")
# How mpirun (MPICH, Open MPI, MVAPICH) and srun tell how many they start, in words that torch does not read.
_OTHER_LAUNCHERS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
# One process may fit a reward model while the others wait; if one dies, the launcher ends the others.
_TIMEOUT = timedelta(hours=24)
_apart = False  # this process's rows are its own


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def launched() -> int:
    """How many processes the launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the first process of torchrun or accelerate, or the only one."""
    return rank() == 0


def join() -> None:
    """Meet the other processes of the launch; on machines without a GPU too. Raises UserError if they are not met."""
    if "WORLD_SIZE" not in os.environ:
        _refuse_other_launchers()
    if launched() == 1:
        return
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    how: dict[str, Any] = {}
    if not torch.accelerator.is_available():
        if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
            how["backend"] = "gloo"
        else:
            os.environ["ACCELERATE_USE_CPU"] = "true"  # else accelerate takes each process for the only one
        if parted_by() == "FSDP" and "ACCELERATE_TORCH_DEVICE" not in os.environ:
            log.warning("without a GPU accelerate leaves FSDP out: each process keeps the whole weights")
    try:
        met = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=_TIMEOUT, **how).num_processes
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the {launched()} processes of the launch cannot meet: {first_line(error)}") from error
    if met != launched():
        raise UserError(
            f"the launcher has started {launched()} processes (WORLD_SIZE), and this one sees {met}: start with "
            "`torchrun -m leftover` or `accelerate launch -m leftover`, or unset WORLD_SIZE to run one process"
        )


def _refuse_other_launchers() -> None:
    """Processes that know nothing of each other would write into one folder, or one would do the work of all."""
    remedy = "start with `torchrun --nproc_per_node N -m leftover`, or set WORLD_SIZE=1 if this process is to run alone"
    for name in _OTHER_LAUNCHERS:
        if int(os.environ.get(name, "1")) > 1:
            raise UserError(
                f"a launcher has started {os.environ[name]} processes ({name}) and told none of its rank: {remedy}"
            )
    # accelerate sets the address where processes meet only for several, but leaves starting them to mpirun on CPUs.
    if {"ACCELERATE_USE_CPU", "KMP_AFFINITY", "MASTER_ADDR"} <= os.environ.keys():
        raise UserError(f"accelerate launch was asked for several processes, and has started one: {remedy}")


def processes() -> int:
    """How many processes work together: those that have joined."""
    if launched() == 1:
        return 1
    import torch

    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if joined else 1


def told(value: Any) -> Any:
    """The value that the first process has, on all; they wait for it."""
    if processes() == 1:
        return value
    import torch

    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def wait() -> None:
    """Until all processes are here."""
    if processes() > 1:
        import torch

        torch.distributed.barrier()


def shared(work: Callable[..., Sequence[_T]], *columns: "Sequence | np.ndarray", model: Any = None) -> list[_T]:
    """`work(*columns)`, which gives one result a row, by all processes: each works on every n-th row, all get all.

    Every process must call it with the same rows, unless it is `apart`. If the weights of `model` lie in parts on the
    processes, which all have to pass through it together, each works on all rows.
    """
    number = 1 if _apart or is_sharded(model) else processes()
    if number == 1:
        return list(work(*columns))
    import torch

    own = [column[rank() :: number] for column in columns]
    parts: list[list[_T]] = [[]] * number
    torch.distributed.all_gather_object(parts, list(work(*own)) if len(own[0]) else [])
    return [parts[i % number][i // number] for i in range(len(columns[0]))]


def parted_by() -> str | None:
    """What accelerate was told to keep weights in parts with; None if each process has them whole."""
    from accelerate.utils import parse_flag_from_env

    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return "FSDP"
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    return "ZeRO-3" if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") and stage == "3" else None


def is_sharded(model: Any) -> bool:
    """Whether FSDP, FSDP2 (DTensor) or ZeRO-3 (`ds_id`) keeps a part of the weights on each process, be it one."""
    if model is None:
        return False
    fsdp = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    return fsdp or any(hasattr(p, "ds_id") or type(p).__name__ == "DTensor" for p in model.parameters())


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Inside, this process works on rows of its own: nothing is shared."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, the first process has no launch, so that libraries train in it alone; the others do not enter."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    def forget() -> None:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()

    launch = {name: os.environ.pop(name) for name in _LAUNCH if name in os.environ}
    if launch:
        forget()
    try:
        yield
    finally:
        os.environ |= launch
        if launch:
            forget()
