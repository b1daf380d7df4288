"""A judge that a test scripts: a real HTTP server that speaks the protocol of chat completions."""

import re
from typing import Any, ClassVar

from leftover.commands.judge.pairs import Pair
from tests.scripted_service import ScriptedService, Step

_TEXTS = re.compile(
    r"^\[(\w+) prompt\]\n(.*)\n\[\1 completion A\]\n(.*)\n\[\1 completion B\]\n(.*)\n\[\1 end\]$", re.S | re.M
)


class JudgeService(ScriptedService):
    """A request is its body, with `headers`, and `prompt`, `first` and `second` as read from its message."""

    path = "/v1"
    answer_headers: ClassVar[dict[str, str]] = {"Content-Type": "application/json"}

    def __init__(self) -> None:
        super().__init__(prefers("good"))

    def received(self, body: dict[str, Any], headers: dict[str, str], path: str) -> dict[str, Any]:
        texts = _TEXTS.search(body["messages"][0]["content"])
        assert texts, body
        body |= dict(zip(("prompt", "first", "second"), texts.groups()[1:], strict=True))
        body |= {"headers": {n.title(): v for n, v in headers.items()}, "path": path}
        self.requests.append(body)
        return body

    def asked(self) -> list[tuple[str, str, str]]:
        return [(request["prompt"], request["first"], request["second"]) for request in self.requests]


def says(text: Any, **fields: Any) -> tuple[int, dict[str, str], Any]:
    """A good answer: 100 tokens of question, 10 of answer."""
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "stub-1",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }
    return 200, {}, body | fields


def prefers(word: str) -> Step:
    """A judge without position bias: the completion that holds the word is better."""

    def step(request: dict[str, Any]) -> tuple:
        first, second = word in request["first"].split(), word in request["second"].split()
        return says(f"Because.\n\n**Verdict: {'tie' if first == second else 'A' if first else 'B'}**")

    return step


def answer(text: Any, **fields: Any) -> Step:
    return lambda request: says(text, **fields)


def status(code: int, body: Any = None, **headers: str) -> Step:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request: (code, sent, {"error": {"message": "no"}} if body is None else body)


def make_pairs(*texts: tuple[str, str], sources: tuple[str, ...] = ("",), seed: int = 0) -> list[Pair]:
    """A pair a (ours, theirs), each a family of its own; the sources in turn."""
    return [
        Pair(f"id-{i}", f"prompt {i}", ours, theirs, i, sources[i % len(sources)], seed)
        for i, (ours, theirs) in enumerate(texts)
    ]
