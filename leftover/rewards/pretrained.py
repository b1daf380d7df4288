"""Loading a published sequence classifier, and what its files say of labels, outputs and lengths."""

import pickle
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedConfig

from leftover.errors import UserError, first_line
from leftover.models.load import max_positions, torch_dtype
from leftover.rewards.joins import Join
from leftover.rewards.neox import MODEL_TYPE, NeoXRewardModel, make_config

# What a folder that holds something else, or half of it, makes the loaders raise.
_LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError, pickle.UnpicklingError)


def load_classifier(path: str, dtype: str) -> tuple[Any, Any]:
    """Tokenizer and model of a folder or Hub id, on the CPU. No code that came with it runs, nothing is unpickled.

    Raises UserError where there is none, or where weights are missing: a head of random numbers scores as well.
    """
    options: dict[str, Any] = {"dtype": torch_dtype(dtype), "output_loading_info": True, "weights_only": True}
    architecture: Any = AutoModelForSequenceClassification
    config: dict[str, Any] = {}
    try:
        fields, _ = PreTrainedConfig.get_config_dict(path)
        if fields.get("model_type") == MODEL_TYPE:
            architecture, config = NeoXRewardModel, {"config": make_config(fields, path)}
        tokenizer = AutoTokenizer.from_pretrained(path, **config)
        model, info = architecture.from_pretrained(path, **config, **options)
    except _LOAD_ERRORS as error:
        raise UserError(f"no sequence classifier at '{path}': {first_line(error)}") from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"]))
        raise UserError(f"'{path}' is no trained sequence classifier: it has no weights for {missing}")
    # Without its files, transformers makes up a tokenizer that knows no word.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise UserError(f"no tokenizer at '{path}': save it beside the model")
    return tokenizer, model


def parts_pairs(tokenizer: Any) -> bool:
    """Whether the tokenizer puts anything between two texts; those of most decoders do not."""
    return tokenizer.num_special_tokens_to_add(pair=True) > 0


def check_tokenizer(path: str, tokenizer: Any, join: Join, max_length: int | None) -> None:
    """UserError where the tokenizer cannot serve `join` within `max_length`."""
    special = tokenizer.num_special_tokens_to_add(pair=join.form == "pair")
    if join.form == "pair" and not parts_pairs(tokenizer):
        raise UserError(
            f"the tokenizer of classifier '{path}' puts nothing between the texts of a pair: set join to the "
            "template that the model was trained with, or to chat"
        )
    if join.form == "chat" and not tokenizer.chat_template:
        raise UserError(f"the tokenizer of classifier '{path}' has no chat template: set join to a template of text")
    known = tokenizer.get_vocab()
    unknown = [token for token in join.special_tokens if token not in known]
    if unknown:
        raise UserError(f"the tokenizer of classifier '{path}' has no token {', '.join(unknown)}")
    if max_length is not None and max_length <= special:
        raise UserError(f"classifier '{path}': max_length {max_length} leaves nothing beside {special} special tokens")


def longest_input(path: str, max_length: int | None, tokenizer: Any, model: Any) -> int | None:
    """The setting, or the most tokens that tokenizer and model take; None where neither says."""
    positions = _positions(model)
    if max_length is not None:
        if positions is not None and max_length > positions:
            raise UserError(f"classifier '{path}' takes {positions} tokens, fewer than max_length {max_length}")
        return max_length
    # A tokenizer that does not know says so by a huge number.
    limits = [limit for limit in (tokenizer.model_max_length, positions) if limit is not None and limit < 10**6]
    return int(min(limits)) if limits else None


def _positions(model: Any) -> int | None:
    """The longest input that the model's config names; RoBERTa counts its positions from the padding id."""
    positions = max_positions(model.config)
    if positions is None or positions <= 0:  # XLNet, which has no limit, says -1
        return None
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return positions - module.padding_idx - 1
    return positions


def choose_activation(path: str, activation: str | None, config: Any) -> str:
    """The setting, or what the config's kind of problem asks for."""
    if activation == "softmax" and config.num_labels == 1:
        raise UserError(f"classifier '{path}' has one output, of which the softmax is always 1: set sigmoid or none")
    if activation is not None:
        return activation
    if config.problem_type == "regression":
        return "none"
    return "sigmoid" if config.num_labels == 1 or config.problem_type == "multi_label_classification" else "softmax"


def label_index(path: str, label: str | int | None, config: Any) -> int:
    """The number of the output that `label` means; None means the last one."""
    if label is None:
        return config.num_labels - 1
    if isinstance(label, int):
        if not 0 <= label < config.num_labels:
            raise UserError(f"classifier '{path}' has labels 0 to {config.num_labels - 1}, not {label}")
        return label
    if label not in config.label2id:
        raise UserError(f"classifier '{path}' has no label '{label}': {', '.join(config.label2id)}")
    return config.label2id[label]


def place(path: str, model: Any, device: str | None) -> Any:
    """The model on the device (default: a GPU where there is one), ready to score."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"classifier '{path}' cannot be put on the device '{device}': {first_line(error)}") from error
