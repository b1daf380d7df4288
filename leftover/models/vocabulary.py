"""Whether a model has an embedding for every token that it may be given."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from leftover.data.tokenizer import num_tokens
from leftover.errors import UserError, not_readable
from leftover.models.load import architecture_of, base_path
from leftover.store.table import list_lengths, list_maxima


def embedding_rows(model: Any) -> int | None:
    """How many tokens a model has embeddings for; None if it does not say which module they are."""
    try:
        embeddings = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    # Weights that are spread over processes have no rows of their own here.
    return getattr(embeddings, "num_embeddings", None) or getattr(embeddings, "weight", np.empty(0)).shape[0] or None


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, rows: int | None, model: str, key: str = "", remedy: str = ""
) -> None:
    """Refuse a tokenizer with tokens beyond the model's embeddings: any text, or padding, may hold one of them.

    A token that was only added for padding is refused as well: whoever loads what is saved here would pad with it.

    Args:
        rows: of the embeddings; None: unknown.
        key: where another tokenizer is named.
        remedy: in place of the usual one.
    """
    size = num_tokens(tokenizer)
    if rows is None or size <= rows:
        return
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    named = ", ".join(token for _, token in beyond[:5]) + (", …" if len(beyond) > 5 else "")
    usual = (
        f"take the tokenizer that the model came with{key and f' ({key})'}, or give the model more rows by "
        f"model.resize_token_embeddings({size}) and save both"
    )
    raise UserError(
        f"the tokenizer has {size} tokens, {model} has {rows} rows of embeddings: none for {named}; {remedy or usual}"
    )


def check_vocabulary_at(
    path: str, tokenizer: PreTrainedTokenizerBase, *, trust_remote_code: bool = False, key: str = ""
) -> None:
    """`check_vocabulary` of the model at a path (of an adapter: its base), by its config. No weights are read."""
    try:
        with not_readable(path):
            config = AutoConfig.from_pretrained(base_path(path), trust_remote_code=trust_remote_code)
    except UserError:  # said where the model is loaded
        return
    check_vocabulary_of(config, tokenizer, f"the model at '{path}'", trust_remote_code=trust_remote_code, key=key)


def check_vocabulary_of(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, model: str, *, trust_remote_code: bool, key: str
) -> None:
    """`check_vocabulary` of a config's model."""
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if rows is not None and num_tokens(tokenizer) > rows:
        with (
            not_readable(f"{model}: none can be made of its config"),
            torch.device("meta"),
        ):  # some have more embeddings than outputs
            skeleton = architecture_of(config).from_config(config, trust_remote_code=trust_remote_code)
        check_vocabulary(tokenizer, embedding_rows(skeleton), model, key)


def check_prepared(rows: Any, name: str, num_embeddings: int | None) -> None:
    """Refuse rows that have token ids already if a prompt has none, or if one lies beyond the model's embeddings.

    `rows`: a data set, a list of rows, or several by name; anything else has no ids yet.
    """
    if isinstance(rows, Mapping):
        for key, part in rows.items():
            check_prepared(part, f"{name}['{key}']", num_embeddings)
        return
    listed = isinstance(rows, list) and bool(rows) and isinstance(rows[0], dict)
    names = rows.column_names if isinstance(rows, Dataset) else rows[0] if listed else ()
    if "prompt_ids" not in names:
        return
    for column in ("prompt_ids", "completion_ids"):
        if column not in names:
            continue
        if isinstance(rows, Dataset):
            lengths, largest = list_lengths(rows, column), list_maxima(rows, column)
        else:
            lengths = np.array([len(row[column]) for row in rows])
            largest = np.array([max(row[column], default=-1) for row in rows])
        if column == "prompt_ids" and not lengths.all():
            raise UserError(
                f"{name}[{lengths.argmin()}]: 'prompt_ids' is empty, so that nothing predicts the completion's first "
                "token: begin it with the beginning or the end of sequence"
            )
        if num_embeddings is not None and len(largest) and largest.max() >= num_embeddings:
            i = int(largest.argmax())
            raise UserError(
                f"{name}[{i}]: '{column}' holds the id {largest[i]}, and the model has {num_embeddings} rows of "
                "embeddings: tokenise the rows with its tokenizer"
            )
