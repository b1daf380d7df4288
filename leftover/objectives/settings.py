"""How an objective declares its own settings: a frozen dataclass whose types say what a value may be."""

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

CHECKED = ConfigDict(extra="forbid", allow_inf_nan=False)

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]

__all__ = ["CHECKED", "NonNegative", "Positive", "dataclass"]
