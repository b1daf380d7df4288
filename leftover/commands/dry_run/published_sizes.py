"""Published sizes of the models that our recipes name, for planning before anything is downloaded.

`CONFIGS` are the fields that decide a model's shape, from the config.json of each repository on the Hugging Face Hub;
`CLASSIFIERS` are parameters of reward models, counted from theirs. `ROWS` are rows of data sets, by split, as their
cards or the released code of A-LoL (github.com/abaheti95/LoL-RL) state them, before anything is left out.
"""

from typing import Any, NamedTuple


class Published(NamedTuple):
    parameters: int
    bytes_per_parameter: int | None = None  # of the published weights, where that is known

    @property
    def size(self) -> int | None:
        """Bytes of the published weights."""
        return None if self.bytes_per_parameter is None else self.parameters * self.bytes_per_parameter


_GPT2_MEDIUM = {"model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 50257}
_GPT2_XL = {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25, "vocab_size": 50257}
_LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 2048,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}

# Name on the Hub, or the last part of a local path -> config.
CONFIGS: dict[str, dict[str, Any]] = {
    "huggyllama/llama-7b": _LLAMA_7B,
    "microsoft/DialoGPT-medium": _GPT2_MEDIUM,
    "openai-community/gpt2-xl": _GPT2_XL,
    # GPT-2 XL taught by symbolic knowledge distillation (arXiv 2110.07178); its tokenizer adds a few tokens.
    "comet-distill": _GPT2_XL,
}

# The heads are a few thousand parameters more or fewer. The two OpenAssistant models are GPT-NeoX of hidden size 2,048
# (24 layers) and 4,096 (32) with a vocabulary of 50,288, published in 4 and 2 bytes a parameter.
CLASSIFIERS: dict[str, Published] = {
    "OpenAssistant/oasst-rm-2.1-pythia-1.4b-epoch-2.5": Published(1_311_594_497, 4),
    "OpenAssistant/oasst-rm-2-pythia-6.9b-epoch-1": Published(6_650_146_817, 2),
    "textattack/roberta-base-CoLA": Published(124_647_170, 4),
    "s-nlp/roberta_toxicity_classifier": Published(124_647_170, 4),
    "ianporada/roberta_base_plausibility": Published(124_647_170, 4),
    "McGill-NLP/roberta-large-faithcritic": Published(355_361_794, 4),
    "microsoft/DialogRPT-updown": Published(354_824_192),
    "microsoft/DialogRPT-depth": Published(354_824_192),
}

ROWS: dict[str, dict[str, int]] = {
    # Pairs; each is two rows. Card of the data set: all subsets together.
    "Anthropic/hh-rlhf": {"train": 160_800, "test": 8_552},
    # Replies. preprocess_wow_and_add_rewards.py of the released code.
    "McGill-NLP/FaithDial": {"train": 18_357, "validation": 3_417, "test": 3_539},
}
