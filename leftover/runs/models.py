"""The models and the tokenizer of a run, loaded as its recipe says."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from leftover.data.chat import Chat
from leftover.data.tokenizer import load_tokenizer
from leftover.models.load import align_generation_config, build_model, is_adapter, load_with, reads_two_texts
from leftover.recipe.sections import LoraSection, Recipe
from leftover.runs.names import reference_folder, tokenizer_folder

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Models:
    """Loads the models that a recipe names or that its run has written into `folder`; on a GPU if there is one."""

    def __init__(self, recipe: Recipe, folder: Path):
        self.section, self.folder = recipe.model, folder
        self.compute_dtype, self.seed = recipe.compute_dtype, recipe.seed
        self._tokenizer_path = tokenizer_folder(recipe, folder)
        self._reference_path = reference_folder(recipe, folder)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        section = self.section
        return load_tokenizer(
            self._tokenizer_path,
            chat_template=section.chat_template,
            trust_remote_code=section.remote_code,
        )

    @cached_property
    def chat(self) -> Chat:
        """The chat template with the recipe's options, and the tokens that end a completion."""
        section = self.section
        return Chat(self.tokenizer, section.template_options, section.end_tokens, two_texts=self.two_texts)

    @cached_property
    def two_texts(self) -> bool:
        """Whether the model is an encoder-decoder."""
        return reads_two_texts(self.section)

    def base(self) -> "PreTrainedModel":
        """The model before any training: pretrained, or with random weights from the recipe's config."""
        section = self.section
        if section.path is None:
            assert section.config is not None
            return build_model(section.config, self.tokenizer, seed=self.seed, dtype=section.dtype)
        return self.load(section.path)

    def reference(self) -> "PreTrainedModel":
        return self.load(self._reference_path)

    def load(self, path: str | Path) -> "PreTrainedModel":
        """The model or adapter at `path`; it generates until one of the chat's end tokens."""
        model = load_with(self.section, str(path), self.compute_dtype)
        align_generation_config(model, self.tokenizer, self.chat.ends)
        return model

    def lora_config(self) -> "LoraConfig | None":
        """The peft config for a new adapter; None for full fine-tuning or if the reference is an adapter."""
        lora = self.section.lora
        if lora is None or is_adapter(self._reference_path):
            return None
        return adapter_config(lora, self.two_texts)


def adapter_config(lora: LoraSection, encoder_decoder: bool = False) -> "LoraConfig":
    """The peft config of a recipe's `model.lora`."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.r,
        lora_alpha=int(lora.alpha),
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="SEQ_2_SEQ_LM" if encoder_decoder else "CAUSAL_LM",
    )
