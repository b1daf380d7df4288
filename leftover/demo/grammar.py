"""A small world of support requests and answers of mixed quality, and a human-written score of an answer.

What makes an answer good (it names the customer, the product and a remedy that fits, and is kind) is drawn apart
from its wording, so that a better policy has no reason to say fewer different things.
"""

import random
from collections.abc import Sequence
from typing import Any

NAMES = "Ada Ben Cleo Dana Eli Fay Gus Hana Ivo June Kai Lena Milo Nora Omar Pia Quin Rosa Sam Tess".split()
PRODUCTS = "kettle lamp radio heater blender camera printer speaker toaster drone".split()

# problem -> remedies that fit it
PROBLEMS: dict[str, tuple[str, ...]] = {
    "does not turn on": ("check the fuse", "try another socket", "hold the power button"),
    "is far too loud": ("tighten the screws", "put it on a soft mat", "clean the fan"),
    "arrived with a crack": ("send us a photo", "use the free return label", "keep the box"),
    "smells of smoke": ("unplug it at once", "let it cool outside", "stop using it"),
    "leaks on the table": ("replace the seal", "empty the tank", "close the lid firmly"),
    "keeps losing its settings": ("update the software", "change the small battery", "reset it once"),
}
_REMEDIES = [remedy for remedies in PROBLEMS.values() for remedy in remedies]

_ASKS = ("What can I do?", "Please help.", "Any idea?", "I need it today.", "Can you fix this?")
_KIND = (
    "Thank you for writing", "I am sorry to hear that", "Happy to help", "That must be annoying", "Good to hear from you"
)
_FLAT = ("Noted", "Your message was received", "This is an answer", "Read this", "We saw it")
_RUDE = ("That is not our problem", "You broke it yourself", "Read the manual next time", "Stop complaining")
_CLOSE_KIND = ("we will stay with you until it works", "write again at any time", "we wish you a good day")
_CLOSE_FLAT = ("that is all", "the case is closed", "end of message")
_VAGUE = ("do something about it", "wait and see", "look it up", "ask somebody else")

_RUDE_WORDS = ("not our problem", "broke it yourself", "read the manual", "stop complaining")
_KIND_WORDS = ("thank you", "sorry", "happy to help", "annoying", "good to hear", "stay with you", "write again", "good day")


def make_rows(num_prompts: int, seed: int) -> list[dict[str, str]]:
    """Rows with `prompt` and `completion`, one answer a prompt, of every quality."""
    rng = random.Random(seed)
    rows = []
    for number in range(num_prompts):
        name, product, problem = rng.choice(NAMES), rng.choice(PRODUCTS), rng.choice(list(PROBLEMS))
        prompt = f"{name} writes: my {product} {problem}. {rng.choice(_ASKS)}"
        answer = write_answer(name, product, problem, rng)
        rows.append({"prompt": prompt, "completion": f" {answer}", "family": f"{name}/{product}/{problem}/{number % 4}"})
    return rows


def write_answer(name: str, product: str, problem: str, rng: random.Random) -> str:
    """One answer; each virtue is there or not by a coin of its own."""
    opening = rng.choice(rng.choices((_KIND, _FLAT, _RUDE), (4, 4, 2))[0])
    addressed = f", {name}" if rng.random() < 0.45 else ""
    thing = f"the {product}" if rng.random() < 0.5 else rng.choice(("it", "the thing", "the device"))
    remedies = PROBLEMS[problem] if rng.random() < 0.4 else rng.choice((_VAGUE, _REMEDIES))
    advice = rng.choice(remedies)
    closing = rng.choice(_CLOSE_KIND if rng.random() < 0.4 else _CLOSE_FLAT)
    return f"{opening}{addressed}. For {thing}, {advice}, and {closing}."


def score_answers(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    """How good each answer is, from -1 to 4: the reward of the demonstration.

    +1 each for the customer's name, the product, a remedy that fits the problem, and kindness; -1 for rudeness.
    """
    return [_score(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]


def _score(prompt: str, completion: str) -> float:
    text = completion.lower()
    name, product = prompt.split()[0].lower(), prompt.split()[3]
    remedies = next((r for problem, r in PROBLEMS.items() if problem in prompt), ())
    virtues = [
        name in text.replace(".", " ").replace(",", " ").split(),
        f"the {product}" in text,
        any(remedy in text for remedy in remedies),
        any(word in text for word in _KIND_WORDS),
    ]
    return float(sum(virtues)) - float(any(word in text for word in _RUDE_WORDS))
