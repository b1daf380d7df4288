"""What the terminal calls the artifacts of a run, by their names in manifests."""

import re
from typing import NamedTuple


class Spoken(NamedTuple):
    """`noun`: what it is, before a colon. `done`: what was done, with `{rows}` where their number is known."""

    noun: str
    done: str


# Pattern of the whole name -> words, with its groups as \1 and \2.
_SPOKEN = {
    r"table/rows": ("Rows", "Read {rows}"),
    r"table/split": ("Split", "Split {rows} into those to train, to validate and to test with"),
    r"tokenizer": ("Tokenizer", "Trained a tokenizer on the rows"),
    r"table/tokens": ("Tokens", "Turned {rows} into tokens"),
    r"reward": ("Reward model", "Fitted the reward model"),
    r"reward (.+)": (r"Reward model '\1'", r"Fitted the reward model '\1'"),
    r"judge (.+)": (r"Judge '\1'", r"Fitted the judge '\1'"),
    r"table/score-(.+)": (r"Scores by \1", r"Scored {rows} by \1"),
    r"table/reward": ("Rewards", "Made the reward of {rows} from their scores"),
    r"reference": ("Reference model", "Fitted the reference model"),
    r"table/reference": ("Log-probabilities under the reference", "Computed how likely the reference finds {rows}"),
    r"table/value": ("Value of each prompt", "Estimated the value of each prompt and the advantage of {rows}"),
    r"policy (.+), seed (\d+)": (r"Policy \1, seed \2", r"Trained policy \1, seed \2"),
    r"evaluation of reference": ("Evaluation of the reference", "Evaluated the reference"),
    r"evaluation of (.+)-seed-(\d+)": (r"Evaluation of \1, seed \2", r"Evaluated \1, seed \2"),
    r"samples of (.+)": (r"Answers written by \1", r"Let \1 write answers to train on next"),
}


def spoken(name: str) -> Spoken:
    """The words for an artifact; of one that has none, its own name."""
    for pattern, words in _SPOKEN.items():
        if found := re.fullmatch(pattern, name):
            return Spoken(*map(found.expand, words))
    return Spoken(name[:1].upper() + name[1:], f"Made {name}")


def whether_told(name: str) -> bool:
    """Whether the terminal speaks of an artifact: not of what is merely checked in every run."""
    return name != "models"
