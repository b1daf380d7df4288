"""Raw rows of a user's own data set -> checked rows and token ids, for `LoLTrainer` without a recipe."""

import json
import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from leftover.data.chat import Chat, Options
from leftover.data.formats import expand
from leftover.data.records import Located, Record, Row
from leftover.data.rows import check_rows
from leftover.data.tokens import Limits, Tokenised, cut_prompt, encode_prompts, tokenise
from leftover.errors import UserError
from leftover.recipe.data_section import DataSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from leftover.recipe.policy_config import PolicyConfig

log = logging.getLogger(__name__)

_REMEDY = "Fix or drop them, or rename your columns (Dataset.rename_column)"
_CHAT_REMEDY = "Fix or drop them, or give the tokenizer another chat_template"


def checked_rows(rows: Iterable[Row], name: str = "train_dataset") -> list[Row]:
    """Rows of the table from a user's dictionaries; faults are raised together.

    Each has beside the columns of ROWS_SCHEMA its own `chat_template_kwargs`, as TRL's trainers read them.
    """
    options: list[Options] = []
    data = DataSection(path=name)

    def located() -> Iterator[Located]:
        for i, row in enumerate(rows):
            for where, one in expand(Record(f"{name}[{i}]", row, name, i), data):
                options.append(_options(one, where))
                yield where, one

    checked = list(check_rows(located(), data, None, {}, _REMEDY, of_recipe=False))
    return [row | {"chat_template_kwargs": own} for row, own in zip(checked, options, strict=True)]


def chat_of(tokenizer: "Tokenizer", args: "PolicyConfig") -> Chat:
    """The tokenizer's chat template with the options and ends of a configuration."""
    return Chat(tokenizer, args.chat_template_kwargs, args.end_tokens)


def tokenise_checked(tokenizer: "Tokenizer", args: "PolicyConfig", checked: list[Row]) -> Tokenised:
    """Token ids of rows of `checked_rows`; faults of conversations are raised together."""
    limits = Limits(args.max_prompt_length, args.max_completion_length)
    tokens = tokenise(_chat_of_rows(tokenizer, args, checked), checked, limits, remedy=_CHAT_REMEDY)
    if any(tokens.system_cut):
        log.warning(
            "%d prompts lost their system turn or tools, which come first, to max_prompt_length=%d",
            sum(tokens.system_cut),
            args.max_prompt_length,
        )
    return tokens


def encode_checked(tokenizer: "Tokenizer", args: "PolicyConfig", checked: list[Row]) -> list[list[int]]:
    """Token ids of the prompts of `checked_rows`, cut on the left."""
    encoded = encode_prompts(_chat_of_rows(tokenizer, args, checked), checked, remedy=_CHAT_REMEDY)
    return [cut_prompt(tokenizer, ids, args.max_prompt_length) for ids in encoded]


def asked(row: Row) -> str:
    """What the model is asked: the same messages with other tools or template options are another prompt."""
    options = json.dumps(row["chat_template_kwargs"], sort_keys=True) if row["chat_template_kwargs"] else ""
    return "\0".join([row["prompt"], row["tools"] or "", options])


def _chat_of_rows(tokenizer: "Tokenizer", args: "PolicyConfig", checked: list[Row]) -> Chat:
    """`chat_of`, once the rows' own options are known to be options of the template."""
    chat = chat_of(tokenizer, args)
    chat.check_options({name: value for row in checked for name, value in row["chat_template_kwargs"].items()})
    return chat


def _options(row: Row, where: str) -> Options:
    options = row.get("chat_template_kwargs") or {}
    if not isinstance(options, dict):
        raise UserError(f"{where}: 'chat_template_kwargs' is a {type(options).__name__}, not a dictionary of options")
    # A data set gives every row the keys of all rows, with None for those that it lacks.
    return {name: value for name, value in options.items() if value is not None}
