"""A recipe <-> one YAML file. An unknown key is an error that names the nearest valid one."""

import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from leftover.errors import UserError, looked_for, nearest, one_line
from leftover.recipe.data_section import ENDINGS
from leftover.recipe.sections import Recipe

log = logging.getLogger(__name__)


# Keys whose overrides may bring new names.
_NAMED = ("name", "policies", "reward", "evaluate.judges", "evaluate=")


# What `--quick` sets, before any override: one evaluation at the end of a training, and few test prompts. Of the
# preparation it changes nothing, so that a run without it reuses the table and the reference.
QUICK = (
    "train.eval_strategy=steps", "train.eval_steps=0.999999", "train.save_strategy=steps", "train.save_steps=0.999999",
    "evaluate.max_selection_prompts=64", "evaluate.max_prompts=64", "evaluate.primary=sampled",
    "evaluate.decodings=[sampled]",
)  # fmt: skip


def quick_overrides(own: Sequence[str]) -> list[str]:
    """Those of `--quick`, before the user's own ones: where these evaluate otherwise, saving follows, as without it."""
    given = {key.strip(): value for key, _, value in (override.partition("=") for override in own)}
    follows = [
        f"train.save_{name}={given[f'train.eval_{name}']}"
        for name in ("strategy", "steps")
        if f"train.eval_{name}" in given
    ]
    return [*QUICK, *follows]


_MOST_NODES = 100_000  # in a file of YAML
_SUM = "# SHA-256 of the lines below: "


class _Loader(yaml.SafeLoader):
    """YAML's safe loader; 1e-5 is the number it is (YAML 1.1 wants 1.0e-5), and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[tuple[str, str]]()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' stands twice", key.start_mark
                )
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """The dumper of what that loader reads back: a text such as 1e5 is quoted."""


class _LineDumper(_Dumper):
    """The same, with line breaks in texts as \\n."""


_LineDumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None),
)
for _class in (_Loader, _Dumper, _LineDumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def load_yaml(text: str) -> Any:
    """YAML as plain Python values; nothing is constructed or executed. Raises yaml.YAMLError for what is none."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > _MOST_NODES:
            raise yaml.YAMLError(f"its anchors and aliases spell more than {_MOST_NODES:,} values")
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:  # of tags and numbers
        why = "" if isinstance(error, AttributeError) else f": {one_line(error, 80)}"
        raise yaml.YAMLError(f"a value is none of its kind{why}") from error
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """The values that a node spells, those of aliases counted every time."""
    if id(node) not in known:
        known[id(node)] = _MOST_NODES + 1  # if it holds itself
        inside = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        parts = [] if isinstance(node, yaml.ScalarNode) else inside
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises UserError that names it if it is not YAML."""
    try:
        return load_yaml(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not valid YAML in UTF-8: {one_line(error)}") from error


def load_recipe(path: str | Path, overrides: Sequence[str] | None = None) -> Recipe:
    """Read a recipe from YAML, or that of a run from its folder; `overrides` are `dotted.key=value` with YAML values.

    Raises UserError that names the file, the key and the nearest valid key.
    """
    path = Path(path)
    saved = (path / "recipe.yaml").is_file()
    if saved:
        path = path / "recipe.yaml"
    if path.suffix in ENDINGS.keys() - {".json"}:  # a recipe may be JSON, which is YAML too
        raise UserError(
            f"{path} is a data file, not a recipe: `leftover init {path} --model ID` writes one (`leftover run {path} "
            f"--model ID` runs it as well), and `leftover inspect {path}` shows what its rows are worth"
        )
    if saved:
        _check_sum(path)
    try:
        content = read_yaml(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"no recipe at '{path}'{looked_for(path)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections, found {type(content).__name__}")
    return make_recipe(content, str(path), overrides, saved=saved).marked(of_folder=saved)


def make_recipe(
    content: dict[str, Any], where: str = "recipe", overrides: Sequence[str] | None = None, *, saved: bool = False
) -> Recipe:
    """Validate a recipe given as a dictionary, which `overrides` change.

    `saved`: it is that of a run's folder, whose names may be those that an earlier version allowed.
    """
    from leftover.recipe.names import check_names  # transformers: two seconds
    from leftover.recipe.training_fields import check_training_fields

    content = _with_new_names(content, where)
    for override in overrides or ():
        set_key(content, override)
        content = _with_new_names(content, f"--set {override}", overrides=True)
    try:
        recipe = Recipe.model_validate(content, context={"saved": saved})
    except ValidationError as error:
        raise UserError("\n".join(f"{where}: {fault}" for fault in faults(error, content))) from None
    check_training_fields(recipe, where)
    if not saved or any(override.strip().startswith(_NAMED) for override in overrides or ()):
        check_names(recipe, where)
    recipe._where = where
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every default written out."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def one_line_of_yaml(content: dict[str, Any]) -> str:
    """One key with its value, as `load_yaml` reads it back."""
    (key,), (value,) = content.keys(), content.values()
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 2**31, "default_flow_style": True}
    inside = yaml.dump([{key: value}], Dumper=_LineDumper, **options).strip()
    return inside.removeprefix("[{").removesuffix("}]")


def dump_saved(recipe: Recipe) -> str:
    """`dump_recipe` with a first line that tells whether it is still as it was written, for the folder of a run."""
    text = dump_recipe(recipe)
    return f"{_SUM}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def without_sum(text: str) -> str:
    """The recipe of a run's folder without that line, which earlier versions did not write."""
    return text.partition("\n")[2] if text.startswith(_SUM) else text


def _check_sum(path: Path) -> None:
    """Raises UserError if the recipe of a run's folder is not as the run wrote it."""
    first, _, content = path.read_bytes().partition(b"\n")
    if first.startswith(b"#") and first != f"{_SUM}{hashlib.sha256(content).hexdigest()}".encode():
        raise UserError(
            f"{path} is not as the run wrote it: run your own recipe again, which writes it anew; or remove its first "
            "line if it is you who changed it"
        )


def set_key(content: dict[str, Any], override: str) -> None:
    """Set `dotted.key=value` in nested dictionaries, the value as YAML."""
    name, separator, value = override.partition("=")
    if not separator:
        raise UserError(f"--set takes key=value, got '{override}'")
    *parents, last = name.strip().split(".")
    section = content
    for parent in parents:
        if section.get(parent) is None:  # such as `rounds: null`
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise UserError(f"--set {override}: '{parent}' is not a section")
    try:
        section[last] = load_yaml(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not valid YAML: {one_line(error)}") from error


def _with_new_names(content: dict[str, Any], where: str, overrides: bool = False) -> dict[str, Any]:
    """The recipe with `data.train_on` under its old name `data.rows` too; an override may replace one by the other."""
    data = content.get("data")
    if not isinstance(data, dict) or "rows" not in data:
        return content
    if "train_on" in data and not overrides:
        raise UserError(f"{where}: 'data.rows' is the old name of 'data.train_on': give only data.train_on")
    _warn_of_old_name(where)
    kept = {name: value for name, value in data.items() if name != "rows"}
    return content | {"data": kept | {"train_on": data["rows"]}}


@cache
def _warn_of_old_name(where: str) -> None:
    """Once for each file: a command may read the recipe of a run several times."""
    log.warning("%s: 'data.rows' is now called 'data.train_on'; the old name is still read", where)


def faults(refusal: ValidationError, given: Any, root: Any = Recipe) -> list[str]:
    """What pydantic found wrong with each key of `given`, validated as `root`; an unknown key with the nearest one.

    root: a model, a dataclass, or a callable with validated arguments.
    """
    found = defaultdict(list)  # several if no branch of a union takes a value
    for error in refusal.errors():
        found[tuple(_keys(error, given))].append(error)
    return [_explain(keys, errors, root) for keys, errors in found.items()]


def _explain(keys: Sequence[str], errors: Sequence[ErrorDetails], root: Any) -> str:
    error, location = errors[0], ".".join(keys).replace(".[", "[")
    if error["type"] == "missing":
        return f"missing key '{location}'"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        valid = list(_section(keys[:-1], root).__pydantic_fields__)
        return f"unknown key '{location}'{nearest(keys[-1], valid) or '; valid here: ' + (', '.join(valid) or 'none')}"
    others = dict.fromkeys(other["msg"].removeprefix("Input should be ") for other in errors[1:])
    message = " or ".join([error["msg"].removeprefix("Value error, "), *others])
    if error["type"] == "union_tag_invalid":
        forms = error["ctx"]["expected_tags"].replace("'", "").replace(", ", " or ")
        message = f"Input should be {forms}"
    if error["type"] == "model_type":
        message = f"Input should be keys with values: {', '.join(_section(keys, root).__pydantic_fields__)}"
    # Not taken as text: YAML reads 2024_01 as 202401, and yes as True.
    if error["type"] == "string_type" and isinstance(error["input"], (int, float, date)):
        message += ": put it in quotes"
    text = f"{location + ': ' if location else ''}{message}"
    # A check of ours shows what was given if that helps.
    return text if error["type"] == "value_error" else f"{text} (got {error.get('input')!r})"[:400]


def _keys(error: ErrorDetails, given: Any) -> list[str]:
    """The keys of `given` that lead to a fault. pydantic puts the branches of unions between them: they are no keys."""
    keys = []
    for part in map(str, error["loc"]):
        if isinstance(given, (list, tuple)):
            inside = {str(place): (f"[{place}]", value) for place, value in enumerate(given)}
        else:
            inside = {str(key): (str(key), value) for key, value in given.items()} if isinstance(given, dict) else {}
        if part in inside:
            key, given = inside[part]
            keys.append(key)
    return [*keys, str(error["loc"][-1])] if error["type"] == "missing" else keys


def _section(keys: Sequence[str], root: Any) -> Any:
    """The section that these keys of `root` lead to."""

    def sections(annotation: Any) -> Iterator[Any]:
        if hasattr(annotation, "__pydantic_fields__"):
            yield annotation
        for part in get_args(annotation):
            yield from sections(part)

    found = root
    for key in keys:
        found = next(sections(found.__pydantic_fields__[key].annotation))
    return found
