"""Classifiers by name: the rewards of the paper (arXiv 2305.14718), each with the settings it was published for."""

from typing import Any

from leftover.rewards.base import check_name, make
from leftover.rewards.classifier import ClassifierReward

# The README of github.com/golsun/DialogRPT and its src/model.py: the stripped turns of the context, each followed by
# the end of text, then the reply without one; the sigmoid of one logit; long texts are cut at their start. The
# code of the paper cuts at the end instead, that is, the reply. The pattern takes away an end of text that a prompt
# has already.
_DIALOGRPT: dict[str, Any] = {
    "label": 0,
    "activation": "sigmoid",
    "join": "{prompt}<|endoftext|>{completion}",
    "prompt_pattern": r"(?s)\A(.*?)(?:\s*<\|endoftext\|>)*\s*\Z",
    "turns": "{content}",
    "turn_separator": "<|endoftext|>",
    "strip": True,
    "truncation_side": "left",
}

# The model cards (huggingface.co/OpenAssistant/oasst-rm-2-pythia-6.9b-epoch-1): every turn under its tag, closed by
# the end of text. Length, side of the cut and the two models' parts (training, test): metrics_hh.py of the paper's
# code, github.com/abaheti95/LoL-RL; the sigmoid: the paper. `activation: none` gives the published logit.
_OASST: dict[str, Any] = {
    "label": 0,
    "activation": "sigmoid",
    "join": "{prompt}<|assistant|>{completion}<|endoftext|>",
    "turns": {"user": "<|prompter|>{content}<|endoftext|>", "assistant": "<|assistant|>{content}<|endoftext|>"},
    "turn_separator": "",
    "strip": True,
    "truncation_side": "left",
    "max_length": 1024,
}

PRESETS: dict[str, dict[str, Any]] = {
    # Label 1 is "acceptable" in CoLA (Warstadt et al., 2018), which the model's labels follow without naming them;
    # utils/attributes_utils.py of the paper's code takes LABEL_1 for fluent. It sees one sentence, no context.
    "cola": {
        "model": "textattack/roberta-base-CoLA",
        "label": 1,
        "activation": "softmax",
        "join": "completion",
        "strip": True,
    },
    # Label 0 is "Entailment", 1 is "Hallucination": models/critic_data.py of github.com/McGill-NLP/FaithDial, and
    # utils/rl_utils.py of the paper's code ("0 is entailment"). The pair (knowledge, reply), at most 512 tokens: the
    # same two. The pattern picks the knowledge of prompts in the paper's form, "Knowledge: ...<|endoftext|>turns".
    "faithcritic": {
        "model": "McGill-NLP/roberta-large-faithcritic",
        "label": 0,
        "activation": "softmax",
        "join": "pair",
        "prompt_pattern": r"(?s)\AKnowledge:(.*?)(?:<\|endoftext\|>|\Z)",
        "turns": "{content}",
        "turn_separator": "<|endoftext|>",
        "strip": True,
        "truncation_side": "right",
        "max_length": 512,
    },
    "dialogrpt_updown": {"model": "microsoft/DialogRPT-updown"} | _DIALOGRPT,
    "dialogrpt_depth": {"model": "microsoft/DialogRPT-depth"} | _DIALOGRPT,
    "oasst_1.4b": {"model": "OpenAssistant/oasst-rm-2.1-pythia-1.4b-epoch-2.5"} | _OASST,
    "oasst_6.9b": {"model": "OpenAssistant/oasst-rm-2-pythia-6.9b-epoch-1"} | _OASST,
}


def make_classifier_reward(preset: str | None = None, **settings: Any) -> ClassifierReward:
    """The classifier of these settings, with those of the `preset` if nothing else is set."""
    if preset is not None:
        check_name("classifier preset", "preset", preset, PRESETS)
        settings = PRESETS[preset] | settings
    return make("classifier reward", ClassifierReward, settings)
