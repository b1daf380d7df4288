"""Models that a run cannot train are refused before a row is read."""

from typing import TYPE_CHECKING

import torch

from leftover.data.tokenizer import num_tokens
from leftover.errors import UserError, located
from leftover.models.load import is_adapter, is_encoder_decoder, load_with, make_config, random_model, with_adapter
from leftover.models.probe import check_causal, check_trainable
from leftover.models.reference import model_identity
from leftover.recipe.sections import TokenizerSection
from leftover.runs.models import adapter_config
from leftover.runs.run import Run
from leftover.store.manifest import Key

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Larger models of random weights are checked when they are trained: building one only for this would take long.
_SMALL = 10**8


def check_models(run: Run) -> None:
    """Load the models that the recipe names, and refuse what cannot be trained to write. Once for every model.

    Each is neither an encoder alone nor, unless all are, an encoder-decoder.
    """
    recipe, section = run.recipe, run.recipe.model
    reference = recipe.reference
    named = {"model.path": section.path, "reference.path": reference.path, "reference.origin": reference.origin}
    paths = {key: path for key, path in named.items() if path is not None}
    if run.manifest.status("models", _key(run, paths)).finished:
        return
    for name, path in paths.items():
        with located(name):
            model = load_with(section, path, recipe.compute_dtype)
            check_causal(model, f"'{path}'")
            if is_encoder_decoder(model) != run.models.two_texts:
                raise UserError(
                    f"'{path}' is {'an' if is_encoder_decoder(model) else 'no'} encoder-decoder, unlike the recipe's "
                    "model, so that it reads other tokens: name models of one kind"
                )
            if name == "reference.path":  # which policies continue
                check_trainable(model, f"'{path}'")
        if name == "model.path" and section.lora is not None and not is_adapter(path):
            with_adapter(model, adapter_config(section.lora, run.models.two_texts))
    if section.config:
        if isinstance(section.tokenizer, TokenizerSection):  # trained on the rows, which nobody has read yet
            vocabulary = section.tokenizer.vocab_size
        else:
            vocabulary = num_tokens(run.models.tokenizer)
        start = (
            {"decoder_start_token_id": 0} if run.models.two_texts else {}
        )  # any: `build_model` gives the tokenizer's
        config = make_config({"vocab_size": vocabulary} | start | section.config)
        if _parameters(config) <= _SMALL:
            check_causal(random_model(config), "model.config")
    run.manifest.begin("models", _key(run, paths))  # of the commit that is here now
    run.manifest.finish("models")


def _key(run: Run, paths: dict[str, str]) -> Key:
    section = run.recipe.model
    config: Key = {"config": section.config} if section.config else {}
    if section.lora is not None:
        config["target_modules"] = section.lora.target_modules
    return config | {name: model_identity(path, run.hashes) for name, path in paths.items()}


def _parameters(config: "PreTrainedConfig") -> int:
    """How many parameters a model of this config has; none of them is made."""
    with torch.device("meta"):
        return sum(p.numel() for p in random_model(config).parameters())
