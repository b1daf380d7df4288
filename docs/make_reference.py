"""Write docs/reference: every key of a recipe and every option of the command line, as the code declares them.

`python docs/make_reference.py` writes the pages (`make reference`). A key is described where it is declared: by its
help, by the comment above or beside it, or under `Args:` in the docstring of its class.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import click
import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from transformers import TrainingArguments

from leftover.cli import cli
from leftover.objectives import OBJECTIVES
from leftover.recipe.forms import Section
from leftover.recipe.lol_config import LoLConfig
from leftover.recipe.policy_config import PolicyConfig
from leftover.recipe.ppo_config import PPOConfig
from leftover.recipe.sections import Recipe
from leftover.recipe.training_fields import RESERVED, own_fields
from leftover.rewards.base import REWARDS
from leftover.rewards.presets import PRESETS
from leftover.rewards.sum import Component
from leftover.rewards.text import FUNCTIONS

FOLDER = Path(__file__).parent / "reference"
_WRITTEN = "<!-- Written from the code by docs/make_reference.py (`make reference`). -->"


class Key(NamedTuple):
    """A key or an option: what it is called, what it takes, what it is if nobody sets it, and what it does."""

    name: str
    takes: str
    default: str
    text: str


class Part(NamedTuple):
    """A section of a page."""

    title: str
    text: str
    keys: list[Key]


def recipe_parts() -> Iterator[Part]:
    """Every section of a recipe, at any depth, then what stands in its free mappings."""
    yield from _section(Recipe, "")
    shared = [key for key in _keys(PolicyConfig) if key.name in PolicyConfig.__annotations__]
    names = {key.name for key in shared} | RESERVED.keys()
    lol = [key for key in _keys(LoLConfig) if key.name in LoLConfig.__annotations__]
    yield Part(
        "train, reference.train, policies.NAME",
        "Fields of `LoLConfig`. Beside these every setting of `transformers.TrainingArguments`, but "
        f"{', '.join(f'`{name}`' for name in sorted(RESERVED))}, which have places of their own in a recipe.",
        [key for key in [*lol, *shared] if key.name not in RESERVED],
    )
    ppo = set(own_fields())
    yield Part(
        "policies.NAME with objective: ppo",
        "Fields of `PPOConfig`, beside those that policies share.",
        [key for key in _keys(PPOConfig) if key.name in ppo - names],
    )
    for name, objective in OBJECTIVES.items():
        if keys := _keys(objective.settings):
            yield Part(f"objective_settings of {name}", _sentence(objective.loss), keys)
    yield Part("reward.functions, evaluate.judges: each", _sentence(Component), _keys(Component))
    for kind, place in REWARDS.items():
        if kind == "sum":
            continue
        made = resolve_name(place)
        if kind == "text":
            for function, reward in FUNCTIONS.items():
                yield Part(f"type: text, function: {function}", _sentence(reward), _keys(reward))
        else:
            made = inspect.signature(made).return_annotation if inspect.isfunction(made) else made
            extra = [Key("preset", ", ".join(f"`{name}`" for name in PRESETS), "", "Settings of a published scorer.")]
            keys = _keys(getattr(made, "Settings", made))
            yield Part(f"type: {kind}", _sentence(made), extra * (kind == "classifier") + keys)


def _section(section: type[Section], path: str) -> Iterator[Part]:
    keys, inside = [], list[tuple[str, type[Section]]]()
    for key in _keys(section):
        nested = next(_sections(section.model_fields[key.name].annotation), None)
        place = f"{path}{key.name}"
        if nested is not None:
            inside.append((place, nested))
            key = key._replace(text=key.text or _sentence(nested))
        keys.append(key._replace(name=place))
    yield Part(path.rstrip(".") or "recipe", _sentence(section), keys)
    for place, nested in inside:
        yield from _section(nested, f"{place}.")


def _sections(annotation: Any) -> Iterator[type[Section]]:
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def cli_parts() -> Iterator[Part]:
    """Every command, with its arguments and options."""
    yield Part("leftover", str(cli.help), list(_options(cli)))
    for name, command in sorted(cli.commands.items()):
        usage = " ".join(command.collect_usage_pieces(click.Context(command)))
        text = f"`leftover {name} {usage}`\n\n{inspect.cleandoc(command.help or '')}"
        yield Part(f"leftover {name}", text, list(_options(command)))


def _options(command: click.Command) -> Iterator[Key]:
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            kind = option.type
            takes = option.metavar or ""
            if isinstance(kind, click.Choice):
                takes = ", ".join(f"`{choice}`" for choice in kind.choices)
            elif not takes and not option.is_flag:
                takes = {"integer": "whole number", "float": "number"}.get(kind.name.removesuffix(" range"), kind.name)
            names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
            known = isinstance(option.default, (str, int, float)) and option.default is not False
            yield Key(names, takes, f"`{option.default}`" if known else "", option.help or "")


def _keys(owner: type) -> list[Key]:
    """The fields of a model or a dataclass, with what its code says of them."""
    said = _described(owner)
    if hasattr(owner, "__pydantic_fields__"):
        found: dict[str, FieldInfo] = owner.__pydantic_fields__
        return [
            Key(name, _takes(field.annotation, field.metadata), _default(field), said.get(name, ""))
            for name, field in found.items()
            if field.init is not False
        ]
    if not dataclasses.is_dataclass(owner):
        return [Key(name, "", "", text) for name, text in said.items()]
    hints = get_type_hints(owner, include_extras=True)
    choices = getattr(owner, "CHOICES", {})
    keys = []
    for field in dataclasses.fields(owner):
        made = field.default_factory is not dataclasses.MISSING
        default = field.default_factory() if made else field.default
        takes = ", ".join(f"`{choice}`" for choice in choices.get(field.name, ())) or _takes(hints[field.name])
        text = field.metadata.get("help") or said.get(field.name, "")
        if field.name in TrainingArguments.__dataclass_fields__:
            takes, text = "", "As in `TrainingArguments`, whose default differs."
        keys.append(Key(field.name, takes, f"`{_yaml(default)}`", text))
    return keys


def _described(owner: type) -> dict[str, str]:
    """Field -> what the class and those that it inherits from say of it, in a comment or under `Args:`."""
    found: dict[str, str] = {}
    for part in reversed(owner.__mro__):
        if part.__module__.startswith("leftover"):
            found |= _arguments(part) | _comments(part)
    return found


def _arguments(owner: type) -> dict[str, str]:
    _, _, text = inspect.cleandoc(owner.__doc__ or "").partition("\nArgs:\n")
    entries = re.split(r"^ {4}(?=[a-z])", text.partition("\n\n")[0], flags=re.MULTILINE)
    pairs = (entry.partition(":") for entry in entries if ":" in entry)
    return {name.strip(): " ".join(said.split()) for names, _, said in pairs for name in names.split(",")}


def _comments(owner: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(owner))
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first, last = node.lineno - 1, node.end_lineno or node.lineno
            above = []
            while first and lines[first - 1].strip().startswith("#"):
                first -= 1
                above.insert(0, lines[first].strip())
            beside = lines[last - 1].encode()[node.end_col_offset :].decode().strip()
            text = " ".join(part.lstrip("# ").removeprefix("noqa").strip() for part in [*above, beside])
            if text.strip():
                found[node.target.id] = text.strip()
    return found


def _takes(annotation: Any, bounds: Any = ()) -> str:
    """What a value of this type looks like in YAML."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _takes(parts[0], (*annotation.__metadata__, *bounds))
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in parts)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_takes(part, bounds) for part in parts if part is not NoneType))
    if origin is list or annotation is list:
        return f"list of {_takes(parts[0])}" if parts else "list"
    if origin is tuple:
        return f"[{', '.join(_takes(part) for part in parts)}]"
    if origin is dict or annotation is dict:
        return "mapping"
    if inspect.isclass(annotation) and issubclass(annotation, Enum):
        return ", ".join(f"`{choice.value}`" for choice in annotation)
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return "keys, below"
    names = {int: "whole number", float: "number", bool: "`true`, `false`", str: "text"}
    return f"{names.get(annotation, 'value')}{_bounds(bounds)}"


def _bounds(metadata: Any) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    inner = [part for entry in metadata for part in (getattr(entry, "metadata", None) or [entry])]
    found = [
        f"{sign} {getattr(entry, name)}" for entry in inner for name, sign in signs.items() if hasattr(entry, name)
    ]
    return f" {', '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    default = field.default if field.default_factory is None else field.default_factory()  # type: ignore[call-arg]
    if isinstance(default, Section):
        return ""
    return "required" if default is PydanticUndefined else f"`{_yaml(default)}`"


def _yaml(value: Any) -> str:
    value = value.value if isinstance(value, Enum) else list(value) if isinstance(value, tuple) else value
    return (
        yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True).removesuffix("\n...\n").strip()
    )


def _sentence(what: Any) -> str:
    """The first paragraph of a docstring, if it is its own."""
    text = what.__dict__.get("__doc__") or "" if inspect.isclass(what) else what.__doc__ or ""
    return " ".join(inspect.cleandoc(text).partition("\n\n")[0].split())


def page(title: str, intro: str, parts: list[Part]) -> str:
    """A page of sections, each with a table of its keys."""
    lines = [f"# {title}", "", _WRITTEN, "", intro, ""]
    for part in parts:
        lines += [f"## {part.title}", ""]
        lines += [part.text, ""] if part.text else []
        if part.keys:
            lines += ["| | takes | default | |", "| --- | --- | --- | --- |"]
            lines += [f"| {' | '.join(_cell(text) for text in _named(key))} |" for key in part.keys]
            lines += [""]
    return "\n".join(lines)


def _named(key: Key) -> Key:
    name = key.name if "`" in key.name else f"`{key.name}`"
    return key._replace(name=name, text=re.sub(r"^[a-z](?=[a-z])", lambda first: first[0].upper(), key.text))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def pages() -> dict[str, str]:
    """File name -> what stands in it."""
    recipe = page(
        "Every key of a recipe",
        "`--set KEY=VALUE` sets any of these, with the dots. `NAME` stands for a name of your own. What the keys are "
        "for is told in the guides: [data](../data.md), [rewards](../rewards.md), [methods](../methods.md).",
        list(recipe_parts()),
    )
    commands = page(
        "Every option of the command line",
        "`leftover COMMAND --help` says the same.",
        list(cli_parts()),
    )
    return {"recipe.md": recipe, "cli.md": commands}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
