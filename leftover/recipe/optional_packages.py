"""What this machine can do: 4-bit weights (QLoRA, arXiv 2305.14314), their optimizers, vLLM, a GPU or none."""

import importlib.util
import logging

from leftover.errors import UserError
from leftover.recipe.engine import EngineSettings

log = logging.getLogger(__name__)

# Values of TrainingArguments.optim that transformers takes from bitsandbytes.
BITSANDBYTES_OPTIMIZERS = {
    "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit",
    "ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit",
    "lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit",
    "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
}  # fmt: skip


def check_quantization() -> None:
    """UserError if bitsandbytes is missing, or knows no 4-bit kernel for this machine's device."""
    _check_package("model.quantization: nf4")
    import torch

    if torch.cuda.is_available():
        return
    import bitsandbytes

    if "cpu" not in getattr(bitsandbytes, "supported_torch_devices", ()):
        raise UserError(
            "model.quantization: nf4 needs a GPU, and this machine has none; this bitsandbytes has no 4-bit kernels "
            "for the CPU: upgrade it, or remove model.quantization"
        )
    log.warning("model.quantization: nf4 is slow without a GPU: use it there only to try out a recipe")


def check_optimizer(name: str, key: str = "optim") -> None:
    """UserError for an optimizer of bitsandbytes if that is missing."""
    if name in BITSANDBYTES_OPTIMIZERS:
        _check_package(f"{key}: {name}")


def check_engine(settings: EngineSettings) -> None:
    """UserError for vLLM without the package or a GPU, unless a server has both."""
    if settings.name == "vllm" and (fault := missing_for_vllm(settings)):
        raise UserError(f"evaluate.engine: vllm {fault}")


def missing_for_vllm(settings: EngineSettings) -> str | None:
    """What vLLM lacks here; None if nothing, or if a server has it."""
    if settings.vllm.address is not None:
        return None
    if importlib.util.find_spec("vllm") is None:
        return "needs the package vllm: pip install 'leftover[vllm]', or name a server in evaluate.vllm.address"
    import torch

    if not torch.cuda.is_available():
        return "needs a GPU, and this machine has none: name a server in evaluate.vllm.address, or take transformers"
    return None


def trains_on_cpu(asked: bool) -> bool:
    """`TrainingArguments.use_cpu`: true without a GPU, or else transformers refuses bf16, which a CPU computes too."""
    import torch

    return asked or not torch.accelerator.is_available()


def _check_package(what: str) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{what} needs the package bitsandbytes: pip install 'leftover[qlora]'")
