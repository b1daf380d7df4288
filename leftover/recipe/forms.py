"""What sections of a recipe share: their base, and values that may be written in several forms."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag


class Section(BaseModel):
    """A part of a recipe; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)


# A value's form chooses its branch of a union, so that pydantic reports the faults of that branch alone.
TEXT, LIST, MAPPING = (Tag(form) for form in ("a text", "a list", "a mapping"))


def _form(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return LIST.tag
    return MAPPING.tag if isinstance(value, (dict, BaseModel)) else TEXT.tag


BY_FORM = Discriminator(_form)

OneOrMore = Annotated[Annotated[str, TEXT] | Annotated[list[str], LIST], BY_FORM]

_Name = Literal["none", "sigmoid", "quantile", "minmax", "standardise"]
_Affine = dict[Literal["scale", "offset"], float]
Transform = Annotated[Annotated[_Name, TEXT] | Annotated[_Affine, MAPPING], BY_FORM]

# Of completions that ran into the limit of new tokens: scored as any, left without a reward, or {penalty: x}, which
# their reward loses.
_Penalty = dict[Literal["penalty"], Annotated[float, Field(ge=0, allow_inf_nan=False)]]
Unfinished = Annotated[
    Annotated[Literal["score", "drop"], TEXT] | Annotated[_Penalty, Field(min_length=1), MAPPING], BY_FORM
]

_Trials = dict[str, list[dict[str, Any]]]
Grid = Annotated[Annotated[Literal["none", "declared"], TEXT] | Annotated[_Trials, MAPPING], BY_FORM]


def _with_text_keys(value: Any) -> Any:
    return {str(name): what for name, what in value.items()} if isinstance(value, dict) else value


# YAML reads the names 1 and yes as a number and a truth value.
TextKeys = BeforeValidator(_with_text_keys)
