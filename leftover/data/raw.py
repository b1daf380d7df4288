"""Raw rows of a user's own data set -> checked rows and token ids, for `LoLTrainer` without a recipe."""

import json
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from leftover.data.chat import Chat
from leftover.data.formats import expand
from leftover.data.records import Record
from leftover.data.rows import Rejects, check_rows
from leftover.data.tokens import Limits, Template, Tokenised, cut_prompt, encode_prompts, refusal, tokenise
from leftover.errors import UserError
from leftover.recipe.sections import DataSection

log = logging.getLogger(__name__)

_REMEDY = "Mend them, leave them out, or rename your columns (Dataset.rename_column)"
_CHAT_REMEDY = "Mend them, leave them out, or give the tokenizer another chat_template"


def checked_rows(rows: Iterable[dict], name: str = "train_dataset") -> list[dict]:
    """Rows of the table from a user's dictionaries; faults are raised together.

    Each has beside the columns of ROWS_SCHEMA its own `chat_template_kwargs`, as TRL's trainers read them.
    """
    options: list[dict[str, Any]] = []
    data = DataSection(path=name)

    def located() -> Iterator[tuple[str, dict]]:
        for i, row in enumerate(rows):
            for where, one in expand(Record(f"{name}[{i}]", row, name, i), data):
                options.append(_options(one, where))
                yield where, one

    with tempfile.TemporaryDirectory() as folder:
        rejects = Rejects(Path(folder) / "rejects")
        checked = list(check_rows(located(), data, rejects, {}, _REMEDY))
    return [row | {"chat_template_kwargs": own} for row, own in zip(checked, options, strict=True)]


def chat_of(tokenizer: Any, args: Any) -> Chat:
    """The tokenizer's chat template with the options and ends of a LoLConfig."""
    return Chat(tokenizer, args.chat_template_kwargs, args.end_tokens)


def tokenise_checked(tokenizer: Any, args: Any, checked: list[dict]) -> Tokenised:
    """Token ids of rows of `checked_rows`; what is wrong with conversations is raised together."""
    faults: dict[int, str] = {}
    prompts, completions = [row["prompt"] for row in checked], [row["completion"] for row in checked]
    conversational = [row["conversational"] for row in checked]
    limits, template = Limits(args.max_prompt_length, args.max_completion_length), _template(tokenizer, args, checked)
    tokens = tokenise(tokenizer, prompts, completions, conversational, limits, template, faults)
    _raise(faults, checked)
    if any(tokens.system_cut):
        log.warning(
            "%d of the prompts lost their system turn or tools, which stand first, to max_prompt_length=%d",
            sum(tokens.system_cut),
            args.max_prompt_length,
        )
    return tokens


def encode_checked(tokenizer: Any, args: Any, checked: list[dict]) -> list[list[int]]:
    """Token ids of the prompts of `checked_rows`, cut on the left."""
    faults: dict[int, str] = {}
    prompts, conversational = ([row[name] for row in checked] for name in ("prompt", "conversational"))
    encoded = encode_prompts(tokenizer, prompts, conversational, _template(tokenizer, args, checked), faults)
    _raise(faults, checked)
    return [cut_prompt(tokenizer, ids, args.max_prompt_length) for ids in encoded]


def asked(row: dict[str, Any]) -> str:
    """What the model is asked: the same messages with other tools or template options are another prompt."""
    options = json.dumps(row["chat_template_kwargs"], sort_keys=True) if row["chat_template_kwargs"] else ""
    return "\0".join([row["prompt"], row["tools"] or "", options])


def _template(tokenizer: Any, args: Any, checked: list[dict]) -> Template:
    chat, options = chat_of(tokenizer, args), [row["chat_template_kwargs"] for row in checked]
    chat.check_options({name: value for own in options for name, value in own.items()})
    return Template(chat, [row["tools"] for row in checked], options)


def _options(row: dict[str, Any], where: str) -> dict[str, Any]:
    options = row.get("chat_template_kwargs") or {}
    if not isinstance(options, dict):
        raise UserError(f"{where}: 'chat_template_kwargs' is a {type(options).__name__}, not a dictionary of options")
    # A data set gives every row the keys of all rows, and None for those it has not.
    return {name: value for name, value in options.items() if value is not None}


def _raise(faults: dict[int, str], checked: list[dict]) -> None:
    if faults:
        raise UserError(refusal({checked[i]["where"]: fault for i, fault in faults.items()}, _CHAT_REMEDY))
