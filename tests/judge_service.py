"""A judge that a test scripts: a real HTTP server that speaks the protocol of chat completions."""

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from leftover.judge.pairs import Pair

Step = Callable[[dict[str, Any]], tuple[int, dict[str, str], Any]]

_TEXTS = re.compile(
    r"^\[(\w+) prompt\]\n(.*)\n\[\1 completion A\]\n(.*)\n\[\1 completion B\]\n(.*)\n\[\1 end\]$", re.S | re.M
)


class JudgeService:
    """`plan` holds what the next requests get, then `then`: request -> (status, headers, body), JSON unless bytes.

    The request is its body, with `headers`, and `prompt`, `first` and `second` as read from its message.
    """

    def __init__(self) -> None:
        self.plan: list[Step] = []
        self.then: Step = prefers("good")
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        lock, service = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                texts = _TEXTS.search(body["messages"][0]["content"])
                assert texts, body
                body |= dict(zip(("prompt", "first", "second"), texts.groups()[1:], strict=True))
                body |= {"headers": {n.title(): v for n, v in self.headers.items()}, "path": self.path}
                with lock:
                    service.requests.append(body)
                    service.times.append(time.monotonic())
                    step = service.plan.pop(0) if service.plan else service.then
                status, headers, answer = step(body)
                sent = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    for name, value in {
                        "Content-Type": "application/json", "Content-Length": str(len(sent)), **headers
                    }.items():  # fmt: skip
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(sent)
                except OSError:  # the client has given up, as it should
                    self.close_connection = True
                if headers.get("Connection") == "close":
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                """Nothing on stderr."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 64

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

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
