"""A recipe <-> one YAML file. An unknown key is an error that names the nearest valid one."""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from leftover.config import Recipe
from leftover.errors import UserError, nearest
from leftover.training_fields import check_training_fields


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
        raise UserError("\n".join(f"{where}: {_explain(e)}" for e in error.errors())) from None
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


def _explain(error: Any) -> str:
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        valid = list(_section_at(error["loc"][:-1]).model_fields)
        close = nearest(str(error["loc"][-1]), valid)
        return f"unknown key '{location}'{close or '; valid here: ' + ', '.join(valid)}"
    if error["type"] == "missing":
        return f"missing key '{location}'"
    return f"{location + ': ' if location else ''}{error['msg']} (got {error.get('input')!r})"[:400]


def _section_at(location: tuple) -> type[BaseModel]:
    section: Any = Recipe
    for part in location:
        annotation = section.model_fields[part].annotation
        options = getattr(annotation, "__args__", (annotation,))
        section = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return section
