"""Loading a sequence classifier, and finding its labels, activation and lengths in its files."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from leftover.data.tokenizer import num_tokens
from leftover.errors import UserError, first_line, not_readable
from leftover.models.load import max_positions, not_in_parts, torch_dtype
from leftover.models.vocabulary import check_vocabulary, embedding_rows
from leftover.rewards.joins import ClassifierSettings
from leftover.rewards.neox import MODEL_TYPE, NeoXRewardModel, make_config


@dataclass(frozen=True)
class Classifier:
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    label: int
    activation: str
    max_length: int | None
    pad_token_id: int | None  # None: the model declares none


def load(settings: ClassifierSettings) -> Classifier:
    """The classifier of the settings, ready to score. Raises UserError if it cannot serve them."""
    tokenizer, model = _load_files(settings.model, settings.dtype)
    max_length = _longest_input(settings.max_length, tokenizer, model)
    _check_tokenizer(settings, tokenizer, max_length)
    tokenizer.truncation_side = settings.truncation_side
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"cannot be put on the device '{device}': {first_line(error)}") from error
    return Classifier(
        tokenizer,
        model,
        _label_index(settings.label, model.config),
        _choose_activation(settings.activation, model.config),
        max_length,
        model.config.get_text_config().pad_token_id,
    )


@not_in_parts()
def _load_files(path: str, dtype: str) -> tuple[Any, Any]:
    """Tokenizer and model of a folder or Hub id, on the CPU. No code that came with it runs, nothing is unpickled.

    Raises UserError where there is none, or where weights are missing: a head of random numbers would score as well.
    """
    architecture: Any = AutoModelForSequenceClassification
    config: dict[str, Any] = {}
    with not_readable("no sequence classifier"):
        fields, _ = PreTrainedConfig.get_config_dict(path)
        if fields.get("model_type") == MODEL_TYPE:
            architecture, config = NeoXRewardModel, {"config": make_config(fields)}
        tokenizer = AutoTokenizer.from_pretrained(path, **config)
        model, info = architecture.from_pretrained(
            path, **config, dtype=torch_dtype(dtype), output_loading_info=True, weights_only=True
        )
    if missing := ", ".join(sorted(info["missing_keys"])):
        raise UserError(f"not a trained sequence classifier: it has no weights for {missing}")
    # Without its files, transformers makes up a tokenizer that knows no word.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise UserError("no tokenizer: save it beside the model")
    check_vocabulary(tokenizer, embedding_rows(model), "the model")
    return tokenizer, model


@not_in_parts()
def untrained_classifier(
    path: str | None, config: dict[str, Any] | None, tokenizer_path: str | None, weights: bool = True
) -> tuple[Any, Any]:
    """A tokenizer, and a model with one new output: that of `path` otherwise, or one of random weights by `config`.

    Without weights the model is on the meta device.
    """
    architecture: Any = AutoModelForSequenceClassification
    with not_readable("no sequence classifier to start from"):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_path or path)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if path is not None:
            model_config = _fused_attention(AutoConfig.from_pretrained(path, num_labels=1))
        else:
            names = ("bos_token_id", "eos_token_id", "pad_token_id")
            known = {"vocab_size": num_tokens(tokenizer), "num_labels": 1} | {n: getattr(tokenizer, n) for n in names}
            model_config = _fused_attention(AutoConfig.for_model(**(known | (config or {}))), config or {})
        if path is not None and weights:
            model = architecture.from_pretrained(
                path, config=model_config, ignore_mismatched_sizes=True, dtype=torch.float32
            )
        else:
            with torch.device("cpu" if weights else "meta"):
                model = architecture.from_config(model_config, dtype=torch.float32)
    check_vocabulary(tokenizer, embedding_rows(model), "the model", "tokenizer")
    model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, model


def _fused_attention(config: Any, asked: Collection[str] = ()) -> Any:
    """The config without dropout of attention weights, unless it was asked for; other dropout stays.

    With it PyTorch builds the whole attention matrix of every head. Without, MiniLM on a CPU (16 rows of 100 to 256
    tokens a step) takes .76 of the time and .6 of the memory.
    """
    for name in {"attention_dropout", "attention_probs_dropout_prob", "attn_dropout", "attn_pdrop"}.difference(asked):
        if isinstance(getattr(config, name, None), float):
            setattr(config, name, 0.0)
    return config


def _check_tokenizer(settings: ClassifierSettings, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
    """Refuse a tokenizer that cannot serve the settings within `max_length`."""
    special = tokenizer.num_special_tokens_to_add(pair=settings.join == "pair")
    if settings.join == "pair" and not special:
        raise UserError(
            "its tokenizer does not separate the texts of a pair: set join to the template that the model was trained "
            "with, or to chat"
        )
    if settings.join == "chat" and not tokenizer.chat_template:
        raise UserError("its tokenizer has no chat template: set join to a template of text")
    if unknown := [token for token in settings.special_tokens if token not in tokenizer.get_vocab()]:
        raise UserError(f"its tokenizer has no token {', '.join(unknown)}")
    if max_length is not None and max_length <= special:
        raise UserError(f"max_length {max_length} leaves no room beside {special} special tokens")


def _longest_input(max_length: int | None, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int | None:
    """The setting, or the most tokens that tokenizer and model take; None if neither has a limit."""
    positions = num_positions(model)
    if max_length is not None:
        if positions is not None and max_length > positions:
            raise UserError(f"it takes {positions} tokens, fewer than max_length {max_length}")
        return max_length
    # A tokenizer without a limit has a huge number in its place.
    limits = [limit for limit in (tokenizer.model_max_length, positions) if limit is not None and limit < 10**6]
    return int(min(limits)) if limits else None


def num_positions(model: PreTrainedModel) -> int | None:
    """The longest input that the model's config names; RoBERTa counts its positions from the padding id."""
    positions = max_positions(model.config)
    if positions is None or positions <= 0:  # XLNet, which has no limit, has -1
        return None
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return positions - module.padding_idx - 1
    return positions


def _choose_activation(activation: str | None, config: Any) -> str:
    """The setting, or the one that goes with the config's kind of problem."""
    if activation == "softmax" and config.num_labels == 1:
        raise UserError("it has one output, of which the softmax is always 1: set sigmoid or none")
    if activation is not None:
        return activation
    if config.problem_type == "regression":
        return "none"
    return "sigmoid" if config.num_labels == 1 or config.problem_type == "multi_label_classification" else "softmax"


def _label_index(label: str | int | None, config: Any) -> int:
    """The number of the output that `label` means; None means the last one."""
    if label is None:
        return config.num_labels - 1
    if isinstance(label, int):
        if not 0 <= label < config.num_labels:
            raise UserError(f"it has labels 0 to {config.num_labels - 1}, not {label}")
        return label
    if label not in config.label2id:
        raise UserError(f"it has no label '{label}': {', '.join(config.label2id)}")
    return config.label2id[label]
