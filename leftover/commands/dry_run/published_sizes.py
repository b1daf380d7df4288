"""Published sizes of the models that our recipes name, for planning before anything is downloaded.

`CONFIGS` are the fields that decide a model's shape, from the config.json of each repository on the Hugging Face Hub;
`CLASSIFIERS` are parameters of reward models, counted from theirs. `ROWS` are rows of data sets, by split, as their
cards or the released code of A-LoL (github.com/abaheti95/LoL-RL) state them, before any row is dropped.
"""

from typing import Any

_GPT2_XL = {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25}

# Name on the Hub, or the last part of a local path -> config; what a config leaves out is transformers' default.
CONFIGS: dict[str, dict[str, Any]] = {
    "huggyllama/llama-7b": {"model_type": "llama"},
    "microsoft/DialoGPT-medium": {"model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16},
    "openai-community/gpt2-xl": _GPT2_XL,
    # GPT-2 XL trained by symbolic knowledge distillation (arXiv 2110.07178); its tokenizer adds a few tokens.
    "comet-distill": _GPT2_XL,
}

# Parameters, and bytes of each in the published weights if known. The heads are a few thousand parameters
# more or fewer. The two OpenAssistant models are GPT-NeoX of hidden size 2,048 (24 layers) and 4,096 (32) with a
# vocabulary of 50,288.
CLASSIFIERS: dict[str, tuple[int, int | None]] = {
    "OpenAssistant/oasst-rm-2.1-pythia-1.4b-epoch-2.5": (1_311_594_497, 4),
    "OpenAssistant/oasst-rm-2-pythia-6.9b-epoch-1": (6_650_146_817, 2),
    "textattack/roberta-base-CoLA": (124_647_170, 4),
    "s-nlp/roberta_toxicity_classifier": (124_647_170, 4),
    "ianporada/roberta_base_plausibility": (124_647_170, 4),
    "McGill-NLP/roberta-large-faithcritic": (355_361_794, 4),
    "microsoft/DialogRPT-updown": (354_824_192, None),
    "microsoft/DialogRPT-depth": (354_824_192, None),
}

ROWS: dict[str, dict[str, int]] = {
    # Pairs; each is two rows. Card of the data set: all subsets together.
    "Anthropic/hh-rlhf": {"train": 160_800, "test": 8_552},
    # Replies. preprocess_wow_and_add_rewards.py of the released code.
    "McGill-NLP/FaithDial": {"train": 18_357, "validation": 3_417, "test": 3_539},
}
