"""The words of the page that explain themselves in a line, under the pointer or on a tap."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

# docs/report.md shows these too.
WORDS = {
    "reference": "The model that every policy starts from and is measured against: yours after fine-tuning on your "
    "rows, or as it was given. The model before that fine-tuning has no row.",
    "KL": "How far a policy has moved from the reference, in nats a completion: 0 is not at all, 10 is far. It is an "
    "estimate from samples, so that no distance may come out slightly below 0.",
    "nats": "The unit of log-probabilities: a nat is a factor of 2.7.",
    "NLL": "Negative log-likelihood of answers: the lower, the likelier the model finds them.",
    "perplexity": "How many words the model hesitates between, on average: the lower, the likelier it finds the text.",
    "entropy": "How undecided the model is at a token, in nats: 0 where it is certain.",
    "distinct-2": "How many of all pairs of neighbouring words are different ones: the lower, the more a model repeats "
    "itself.",
    "win rate": "The share of prompts on which the policy's answer scores higher than the reference's; a tie counts "
    "half.",
    "effective sample size": "How many equally weighted rows the weighted ones are worth: where it is far below the "
    "rows, few of them carry the run.",
    "importance weights": "How much likelier a row's tokens are under the policy than under the reference, up to "
    "a limit.",
    "log-ratio": "Log-probability of an answer under the policy less that under the reference: above 0 it has become "
    "likelier.",
    "rank correlation": "Whether answers with higher scores have become likelier than those with lower ones: 1 always, "
    "0 by chance.",
    "pair accuracy": "Of two answers to one prompt, how often the better one has become the likelier: 0.5 is chance.",
    "value": "V, what the reference's answers to a prompt score on average, estimated.",
    "advantage": "A = R − V: a row's reward less what its prompt leads one to expect.",
    "leftover": "The training rows with a positive advantage, better than the reference's own answers.",
    "neighbours": "The ten rows whose prompt and completion read most like a row, by the words that they share.",
    "R²": "The share of the variance of rewards that V explains on prompts it was not fitted on; 0: no better than "
    "the mean.",
    "prompt family": "Prompts that belong together, as those of a conversation; they stay on one side of every split.",
    "selection prompts": "Prompts of the validation split, which chose the checkpoint that was kept; none of them is "
    "trained on or in the results.",
}
_BY_LOWER = {word.lower(): meaning for word, meaning in WORDS.items()}
# What a word of everyday language means here is explained where it is a heading, not wherever it stands in a sentence.
_EVERYDAY = {"value", "leftover", "neighbours"}


OBJECTIVES = {
    "nll": "Plain fine-tuning on the answers (negative log-likelihood).",
    "nll_top": "Plain fine-tuning on the answers of the highest scores alone.",
    "wbc": "Weighted behaviour cloning: fine-tuning in which an answer weighs its score.",
    "r_gold": "GOLD with the score as reward: weighted fine-tuning, likely tokens more than unlikely ones.",
    "r_lol": "A-LoL with the score itself in place of the advantage.",
    "a_lol": "A-LoL: trains on the leftover, weighted by advantage and an importance weight of the whole answer.",
    "a_lol_ref_free": "A-LoL without importance weights: trains on the leftover, weighted by advantage.",
    "a_lol_seq": "A-LoL: trains on the leftover, weighted by advantage and an importance weight of every token.",
    "a_lol_kl": "A-LoL with a penalty on the distance from the reference in place of importance weights.",
    "dpo": "Direct preference optimisation: makes the better of two answers likelier than the worse.",
    "pro": "Preference ranking optimisation: ranks several answers to a prompt, and fine-tunes on the best.",
    "grpo_offline": "GRPO on fixed answers: compares the answers to a prompt with their mean.",
    "awr": "Advantage-weighted regression: fine-tuning with weights that grow exponentially with the advantage.",
    "kto": "Makes desirable answers likelier and undesirable ones less so, held to the reference.",
    "dro": "Direct reward optimisation: fits policy and value to the scores, held to the reference.",
    "qrpo": "Fits the policy to where a score ranks among those of the reference's own answers.",
    "var": "Fine-tuning with weights that grow exponentially with the score.",
    "ppo": "Writes answers while it trains, scores them, and makes the better ones likelier.",
}
_OF_ROWS = {
    "leftover": " Here on the leftover alone.",
    "top": " Here on the answers of the highest scores alone.",
    "best": " Here on the best answer of every prompt alone.",
}


def names_explained(policies: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Name of a row -> what it stands for: of the policies of a recipe, the reference and the data."""
    found = {
        name: OBJECTIVES[of["objective"]] + _OF_ROWS.get(of.get("rows", ""), "")
        for name, of in policies.items()
        if of.get("objective") in OBJECTIVES
    }
    return found | {"reference": WORDS["reference"], "data": "The answers of the held-out rows themselves."}


def meaning_of(text: str) -> str | None:
    """What a heading, or a word, means; None if nothing of it needs a word."""
    return _BY_LOWER.get(text.lower()) or next((meaning for _, meaning in parts(text) if meaning), None)


def parts(text: str, named: Mapping[str, str] | None = None) -> Iterator[tuple[str, str | None]]:
    """The text in pieces, each with its meaning if a term, or one of `named`, stands there for the first time."""
    names, seen, at = named or {}, set(), 0
    for match in _pattern(frozenset(names)).finditer(text):
        found = match[0]
        # KL and NLL are terms, kl and nll the names of methods.
        meaning = names.get(found) or WORDS.get(found) or WORDS.get(found.lower())
        if meaning is not None and meaning not in seen:
            yield text[at : match.start()], None
            yield found, meaning
            seen.add(meaning)
            at = match.end()
    yield text[at:], None


@cache
def _pattern(names: frozenset[str]) -> re.Pattern[str]:
    words = sorted({*WORDS} - _EVERYDAY | names, key=lambda word: (-len(word), word))
    return re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, words))})(?![\w-])", re.IGNORECASE)
