"""How completions are written: by which engine, and in batches of what size."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pydantic import Field, field_validator

from leftover.recipe.forms import Section
from leftover.services.credentials import check_token_settings, check_url

EngineName: TypeAlias = Literal["auto", "transformers", "vllm"]

# Positions in a batch of completions: 64 rows of 1,024 tokens.
MAX_BATCH_TOKENS = 65_536


class VllmSection(Section):
    """How vLLM is reached, or started."""

    address: str | None = None  # http://host:port of a `vllm serve`; default: on this process's GPU
    token_env: str | None = None  # the environment variable that holds the server's key
    timeout: float = Field(600.0, gt=0)  # seconds that the server has for one completion
    # Of the whole GPU memory, while vLLM writes; between uses the memory is free again.
    gpu_memory_utilization: float = Field(0.4, gt=0, lt=1)

    @field_validator("address")
    @classmethod
    def _check_address(cls, address: str | None) -> str | None:
        if address is None:
            return None
        check_url(address, "evaluate.vllm.address")
        return address.rstrip("/").removesuffix("/v1")

    @field_validator("token_env")
    @classmethod
    def _check_token(cls, token_env: str | None) -> str | None:
        check_token_settings(token_env, "Authorization", "evaluate.vllm")
        return token_env


@dataclass(frozen=True)
class EngineSettings:
    """`auto`: vLLM if it is at hand and serves the model, else transformers."""

    name: EngineName = "auto"
    vllm: VllmSection = field(default_factory=VllmSection)

    @property
    def key(self) -> dict[str, Any]:
        """What the engine adds to the key of completions: its name if it was asked for, nothing by default.

        `auto` takes what the machine has, and a run that is looked at on another machine is still the same run.
        """
        return {"engine": "vllm"} if self.name == "vllm" else {}
