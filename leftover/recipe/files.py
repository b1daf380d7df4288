"""A recipe <-> one YAML file. An unknown key is an error that names the nearest valid one."""

import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from leftover.errors import UserError, nearest
from leftover.recipe.checks import check_training_fields
from leftover.recipe.sections import Recipe, RewardSection


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, with 1e-5 read as the number it is (YAML 1.1 wants 1.0e-5)."""


class _Dumper(yaml.SafeDumper):
    """The dumper of what that loader reads back: a text such as 1e5 is quoted."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def load_yaml(text: str) -> Any:
    """YAML as plain Python values; nothing is constructed or executed."""
    return yaml.load(text, _Loader)


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe from YAML, or that of a run from its folder; `overrides` are `dotted.key=value` with YAML values.

    Raises UserError that names the file, the key and the nearest valid key.
    """
    path = Path(path)
    if (path / "recipe.yaml").is_file():
        path = path / "recipe.yaml"
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"no recipe at '{path}'") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not valid YAML in UTF-8: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections, found {type(content).__name__}")
    return make_recipe(content, where=str(path), overrides=overrides)


def make_recipe(content: dict[str, Any], where: str = "recipe", overrides: list[str] | None = None) -> Recipe:
    """Validate a recipe given as a dictionary, which `overrides` change."""
    for override in overrides or []:
        set_key(content, override)
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(f"{where}: {fault}" for fault in faults(error, content))) from None
    check_training_fields(recipe, where)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every default written out."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def set_key(content: dict[str, Any], override: str) -> None:
    """Set `dotted.key=value` in nested dictionaries, the value as YAML."""
    name, separator, value = override.partition("=")
    if not separator:
        raise UserError(f"--set takes key=value, got '{override}'")
    *parents, last = name.strip().split(".")
    section = content
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise UserError(f"--set {override}: '{parent}' is not a section")
    try:
        section[last] = load_yaml(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not valid YAML: {' '.join(str(error).split())}") from error


class _Place(NamedTuple):
    """Where a fault is: the keys of the recipe, and of a union how many of them lead to it and which branch it is."""

    keys: tuple[Any, ...]
    section: type[BaseModel] | None  # the last of them
    union: tuple[int, str] | None


def _place(location: tuple[Any, ...], root: Any) -> _Place:
    """pydantic's location, which holds the branches of unions between the keys."""
    parts, keys, union = list(location), list[Any](), None
    found = root
    while parts:
        keys.append(parts.pop(0))
        if found is None or keys[-1] not in found.__pydantic_fields__:
            continue
        annotation: Any = found.__pydantic_fields__[keys[-1]].annotation
        is_union = get_origin(annotation) in (Union, UnionType)
        options = [o for o in get_args(annotation) if o is not NoneType] if is_union else [annotation]
        if len(options) > 1 and parts:
            union = (len(keys), str(parts.pop(0)))
        found = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return _Place(tuple(keys), found, union)


def faults(refusal: ValidationError, content: Any, root: Any = Recipe) -> list[str]:
    """What is wrong with each key of `root`, a section or a dataclass of pydantic's.

    Of a union only the branches that take a value of that kind are named, where there is one.
    """
    errors = refusal.errors()
    places = [_place(error["loc"], root) for error in errors]
    fits = [_fits(content, place) for place in places]
    served = {place.keys[: place.union[0]] for place, fit in zip(places, fits, strict=True) if place.union and fit}
    told = []
    for error, place, fit in zip(errors, places, fits, strict=True):
        if fit or place.union is None or place.keys[: place.union[0]] not in served:
            told.append(_explain(error, place, root))
    return told


def _fits(content: Any, place: _Place) -> bool:
    """Whether the value is of the kind, mapping, list or neither, that the branch of the union takes."""
    if place.union is None:
        return True
    length, branch = place.union
    for key in place.keys[:length]:
        content = content[key]
    if isinstance(content, list):
        return branch.startswith("list")
    takes_mapping = branch.startswith("dict") or branch.endswith("Section")
    return takes_mapping == isinstance(content, dict) and not branch.startswith("list")


def _explain(error: Any, place: _Place, root: Any) -> str:
    location = ".".join(str(key) for key in place.keys)
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        section: Any = _place(error["loc"][:-1], root).section
        valid = list(section.__pydantic_fields__) if section else []
        close = nearest(str(place.keys[-1]), valid)
        return f"unknown key '{location}'{close or '; valid here: ' + (', '.join(valid) or 'none')}"
    if error["type"] == "missing":
        return f"missing key '{location}'"
    text = f"{location + ': ' if location else ''}{error['msg'].removeprefix('Value error, ')}"
    # A check of ours shows what was given where that helps.
    return text if error["type"] == "value_error" else f"{text} (got {error.get('input')!r})"[:400]


def reward_section(path: str | None) -> RewardSection | None:
    """A YAML file with the section `reward` of a recipe, or with its list of functions alone."""
    if path is None:
        return None
    try:
        content = load_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--reward {path}: not a YAML file: {' '.join(str(error).split())}") from error
    if isinstance(content, dict) and "type" in content:  # one function alone
        content = [content]
    content = {"functions": content} if isinstance(content, list) else content
    minimal = {"name": "x", "output_dir": ".", "model": {"path": "x"}, "data": {"path": "x"}}
    return make_recipe(minimal | {"reward": content}, where=f"--reward {path}").reward
