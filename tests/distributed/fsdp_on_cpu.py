"""accelerate's FSDP on CPUs, which it leaves to GPUs: `python -m tests.distributed.fsdp_on_cpu run recipe.yaml`."""

import os
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType

from leftover.cli import main


def allow() -> None:
    """From now on processes meet as on GPUs, by gloo."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

    def backend(*_: Any, **__: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = backend  # type: ignore[method-assign]
    PartialState()


if __name__ == "__main__":
    allow()
    main()
