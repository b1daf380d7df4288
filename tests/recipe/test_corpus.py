"""Every key of a recipe with values of a wrong type or range: refused in a line that names the key, or harmless."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, get_args

import pydantic
import pytest

from leftover.errors import UserError
from leftover.recipe.files import make_recipe
from leftover.recipe.lol_config import LoLConfig
from leftover.recipe.ppo_config import PPOConfig
from leftover.recipe.sections import Recipe

Key = tuple[str, ...]
VALUES: dict[str, Any] = {
    "wrong": "xyz",
    "NaN": math.nan,
    "infinity": math.inf,
    "-1": -1,
    "0": 0,
    "huge": 1e30,
    "empty": "",
    "list": [],
    "list of texts": ["x"],
    "map": {},
    "map of numbers": {"a": 1},
}


def keys_of(section: Any, prefix: Key = ()) -> Iterator[Key]:
    for name, field in section.model_fields.items():
        yield (*prefix, name)
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
                yield from keys_of(kind, (*prefix, name))


def keys_of_trainings() -> Iterator[Key]:
    shared = [field.name for field in dataclasses.fields(LoLConfig) if field.init]
    yield from (("train", name) for name in shared)
    own = [field.name for field in dataclasses.fields(PPOConfig) if field.init and field.name not in shared]
    yield from (("policies", "p", name) for name in own)


KEYS = [*keys_of(Recipe), *keys_of_trainings()]
# Truth values and numbers that a key may well have, by what VALUES calls them.
NEVER = {"NaN", "list of texts", "map of numbers"}
MAY = {
    "list of texts": {"end_tokens", "target_modules", "relations", "names", "hub_data_dir", "hub_split", "path",
                      "optim_target_modules", "include_for_metrics", "label_names", "report_to"},
    "map of numbers": {"template_options", "labels", "lr_scheduler_kwargs", "activation_checkpointing_kwargs",
                       "gradient_checkpointing_kwargs", "accelerator_config", "fsdp_config", "deepspeed",
                       "chat_template_kwargs"},
    "NaN": set(),
}  # fmt: skip


def with_value(key: Key, value: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"name": "n", "output_dir": "run", "model": {"path": "m"}, "data": {"path": "rows.jsonl"}}
    if key[0] == "policies" and len(key) > 1:
        content["policies"] = {"p": {"objective": "ppo"}}
    section = content
    for name in key[:-1]:
        section = section.setdefault(name, {})
    section[key[-1]] = value
    return content


@pytest.mark.parametrize("kind", VALUES)
def test_a_value_that_no_key_can_have_is_refused_by_the_keys_name(kind: str) -> None:
    taken = set[str]()
    for key in KEYS:
        try:
            make_recipe(with_value(key, VALUES[kind]))
        except UserError as error:  # nothing else may be raised
            assert key[-1] in str(error) or "missing key" in str(error), f"{'.'.join(key)}: {error}"
            assert len(str(error)) < 2000
        else:
            taken.add(key[-1])
    if kind in NEVER:
        assert taken <= MAY[kind]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("value.bounds", [1, 0], "the lower and the higher bound"),
        ("value.bounds", [math.nan, 1], "the lower and the higher bound"),
        ("value.candidates", [], "name at least one"),
        ("seeds", [0, 0], "the same seed stands twice"),
        ("evaluate.temperature", 1e-300, "0.01"),
        ("evaluate.temperature", math.inf, "finite"),
        ("train.bf16", "xyz", "true or false"),
        ("train.load_best_model_at_end", "xyz", "true or false"),
        ("train.lr_scheduler_type", "linera", "did you mean 'linear'"),
        ("train.eval_strategy", "stesp", "did you mean 'steps'"),
        ("train.max_steps", 1e30, "at most"),
        ("train.resume_from_checkpoint", "../../x", "goes on from its own checkpoints"),
        ("train.do_eval", False, "the command says what is done"),
    ],
)
def test_values_that_would_change_results_or_leave_the_folder_are_refused(key: str, value: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        make_recipe(with_value(tuple(key.split(".")), value))
