"""A small world of support requests and answers of mixed quality, and a human-written score of an answer.

What makes an answer good (it names the customer, the product and a remedy that fits, and is kind) is drawn apart
from its wording, so that a better policy has no reason to say fewer different things.
"""

import random
from collections.abc import Sequence
from typing import Any

NAMES = [
    "Ada",
    "Ben",
    "Cleo",
    "Dana",
    "Eli",
    "Fay",
    "Gus",
    "Hana",
    "Ivo",
    "June",
    "Kai",
    "Lena",
    "Milo",
    "Nora",
    "Omar",
    "Pia",
    "Quin",
    "Rosa",
    "Sam",
    "Tess",
]
PRODUCTS = ["kettle", "lamp", "radio", "heater", "blender", "camera", "printer", "speaker", "toaster", "drone"]

# problem -> how often an answer has each virtue, and the remedies that fit
PROBLEMS: dict[str, tuple[float, tuple[str, ...]]] = {
    "does not turn on": (
        0.70,
        ("check the fuse", "try another socket", "hold the power button", "charge it overnight"),
    ),
    "is far too loud": (0.45, ("tighten the screws", "put it on a soft mat", "clean the fan", "lower the speed")),
    "arrived with a crack": (
        0.60,
        ("send us a photo", "use the free return label", "keep the box", "ask for a new one"),
    ),
    "smells of smoke": (0.20, ("unplug it at once", "let it cool outside", "stop using it", "open a window")),
    "leaks on the table": (0.35, ("replace the seal", "empty the tank", "close the lid firmly", "dry the valve")),
    "keeps losing its settings": (
        0.25,
        ("update the software", "change the small battery", "reset it once", "save twice"),
    ),
}
_REMEDIES = [remedy for _, remedies in PROBLEMS.values() for remedy in remedies]

_ASKS = ("What can I do?", "Please help.", "Any idea?", "I need it today.", "Can you fix this?")
_KIND = (
    "Thank you for writing",
    "I am sorry to hear that",
    "Happy to help",
    "That must be annoying",
    "Good to hear from you",
    "Thank you for the clear report",
    "Sorry for the trouble",
    "We are happy to help at once",
    "Sorry that this went wrong",
    "Thank you for your patience",
)
_FLAT = ("Noted", "Your message was received", "This is an answer", "Read this", "We saw it")
_RUDE = ("That is not our problem", "You broke it yourself", "Read the manual next time", "Stop complaining")
_CLOSE_KIND = (
    "we will stay with you until it works",
    "please write again",
    "we wish you a good day",
    "we will call you",
)
_CLOSE_FLAT = ("that is all", "the case is closed", "end of message", "you will get a letter")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_TIMES = ("at eight", "at nine", "at ten", "at noon", "after lunch", "in the evening")
_ABOUT = (
    "I bought it in May",
    "It was a gift",
    "It is two years old",
    "It stands in the kitchen",
    "My son uses it",
    "I use it every day",
    "It came last week",
    "It worked well before",
)
_SINCE = (
    "and it began on {day}",
    "and I saw it {time}",
    "and it got worse on {day}",
    "and nobody touched it",
    "and I called you on {day}",
    "and it happened twice {time}",
)
_VAGUE = ("do something about it", "wait and see", "look it up", "ask somebody else")

_RUDE_WORDS = ("not our problem", "broke it yourself", "read the manual", "stop complaining")
_KIND_WORDS = ("thank you", "sorry", "happy to help", "annoying", "good to hear", "stay with you", "please", "good day")


def make_rows(num_prompts: int, seed: int, *, details: bool = False) -> list[dict[str, str]]:
    """Rows with `prompt` and `completion`, one answer a prompt, of every quality.

    `details`: customers tell more, of no use to an answer, so that few prompts nearly repeat another.
    """
    rng = random.Random(seed)
    rows = []
    for number in range(num_prompts):
        name, product, problem = rng.choice(NAMES), rng.choice(PRODUCTS), rng.choice(list(PROBLEMS))
        told = _details(rng) if details else ""
        prompt = f"{name} writes: my {product} {problem}. {told}{rng.choice(_ASKS)}"
        answer = write_answer(name, product, problem, rng)
        rows.append(
            {"prompt": prompt, "completion": f" {answer}", "family": f"{name}/{product}/{problem}/{number % 4}"}
        )
    return rows


def _details(rng: random.Random) -> str:
    return f"{rng.choice(_ABOUT)}, {rng.choice(_SINCE).format(day=rng.choice(_DAYS), time=rng.choice(_TIMES))}. "


def write_answer(name: str, product: str, problem: str, rng: random.Random) -> str:
    """One answer. Each virtue is there or not by a coin of its own, biased by the problem: some are hard."""
    virtue, remedies = PROBLEMS[problem]
    openings = _KIND if rng.random() < virtue else rng.choice((_FLAT, _FLAT, _RUDE))
    addressed = f", {name}" if rng.random() < virtue else ""
    thing = f"the {product}" if rng.random() < virtue else rng.choice(("it", "the thing", "the device"))
    advice = rng.choice(remedies if rng.random() < virtue else rng.choice((_VAGUE, _REMEDIES)))
    closing = rng.choice(_CLOSE_KIND if rng.random() < 0.5 else _CLOSE_FLAT)
    when = f"{rng.choice(_DAYS)} {rng.choice(_TIMES)}"
    return f"{rng.choice(openings)}{addressed}. For {thing}, {advice}, and {closing} on {when}."


def score_answers(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    """How good each answer is, from -1 to 4: the reward of the demonstration.

    +1 each for the customer's name, the product, a remedy that fits the problem, and kindness; -1 for rudeness.
    """
    return [_score(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]


def _score(prompt: str, completion: str) -> float:
    text = completion.lower()
    name, product = prompt.split()[0].lower(), prompt.split()[3]
    remedies = next((fitting for problem, (_, fitting) in PROBLEMS.items() if problem in prompt), ())
    virtues = [
        name in text.replace(".", " ").replace(",", " ").split(),
        f"the {product}" in text,
        any(remedy in text for remedy in remedies),
        any(word in text for word in _KIND_WORDS),
    ]
    return float(sum(virtues)) - float(any(word in text for word in _RUDE_WORDS))
