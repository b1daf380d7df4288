"""Services that score: some answers as they should be, then what a broken or hostile one sends."""

import gzip
import json
import os
import random
import resource
import shutil
import socket
import socketserver
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from leftover.services import client
from tests.faults.outcome import (
    LEAK,
    NO_HELP,
    OTHER_RESULTS,
    Outcome,
    differing,
    finished,
    results,
    write_recipe,
)

CANARY = "k-canary-91b7"
_SECONDS = 60
_MEMORY = 2**30  # bytes of data that a command may take beside what it has when it starts

Parts = Iterator[bytes]


def _head(status: str = "200 OK", *headers: str) -> bytes:
    return "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", "Connection: close", *headers, "")).encode(
        "latin-1"
    )


def _whole(body: bytes, status: str = "200 OK", *headers: str) -> Parts:
    yield _head(status, f"Content-Length: {len(body)}", *headers) + body


def _scores(scores: list[float]) -> bytes:
    """What it would have answered: if that is taken in spite of all around it, the results are right."""
    return json.dumps({"scores": scores}).encode()


def _status(scores: list[float], key: str, draws: random.Random) -> Parts:
    code = draws.choice([204, 301, 302, 307, 400, 401, 403, 404, 413, 418, 429, 500, 502, 503, 599])
    return _whole(f"no, {key}".encode(), f"{code} {draws.choice(['No', key, ''])}", f"Location: file:///etc/{key}")


def _body(scores: list[float], key: str, draws: random.Random) -> Parts:
    number = draws.choice(["NaN", "Infinity", "1e400", "9" * 5000, '"1"', "[1]", "{}"])
    return _whole(
        draws.choice(
            [
                b"",
                b"null",
                b"\xff\xfe\x00",
                b"\xef\xbb\xbf" + _scores(scores),
                f"<html>{key}</html>".encode(),
                b"[" * 200_000,
                _scores([*scores, 1.0]),
                _scores([]),
                f'{{"scores": [{", ".join([number] * len(scores))}]}}'.encode(),
                json.dumps({"scores": {key: 1}}).encode(),
                json.dumps({"score": scores, "key": key}).encode(),
            ]
        )
    )


def _wait(scores: list[float], key: str, draws: random.Random) -> Parts:
    asked = draws.choice(["86400", "-5", "soon", "Fri, 31 Dec 2099 23:59:59 GMT", "1e9", "9" * 400, ""])
    return _whole(b"later", draws.choice(["429 Slow", "503 Busy"]), f"Retry-After: {asked}")


def _length(scores: list[float], key: str, draws: random.Random) -> Parts:
    said = draws.choice(["5", "99999", "-1", "a", "9" * 30])
    yield _head("200 OK", f"Content-Length: {said}") + _scores(scores)


def _packed(scores: list[float], key: str, draws: random.Random) -> Parts:
    bomb, kind = gzip.compress(b" " * 2**20, 9), draws.choice(["bomb", "no gzip", "cut", "unknown"])
    yield _head("200 OK", f"Content-Encoding: {'x-own' if kind == 'unknown' else 'gzip'}")
    if kind == "bomb":
        for _ in range(4000):
            yield bomb
    yield gzip.compress(_scores(scores))[:-9] if kind == "cut" else _scores(scores)


def _chunked(scores: list[float], key: str, draws: random.Random) -> Parts:
    yield _head("200 OK", "Transfer-Encoding: chunked")
    yield draws.choice([b"zz\r\nabc\r\n", b"fffffffffffffff\r\nabc", b"5\r\nab", b"-3\r\nabc\r\n0\r\n\r\n"])


def _endless(scores: list[float], key: str, draws: random.Random) -> Parts:
    yield _head()
    while True:
        yield b" " * 2**20


def _dripping(scores: list[float], key: str, draws: random.Random) -> Parts:
    head = draws.random() < 0.5
    yield b"" if head else _head()
    for byte in _head() * 1000 if head else _scores(scores) * 1000:
        yield bytes([byte])
        time.sleep(0.05)


def _silent(scores: list[float], key: str, draws: random.Random) -> Parts:
    time.sleep(draws.choice([0.0, 3600]))
    yield b""


def _no_http(scores: list[float], key: str, draws: random.Random) -> Parts:
    yield draws.choice(
        [b"\x00" * 1000, b"SSH-2.0-x\r\n", b"HTTP/9.9 banana\r\n\r\n", b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n{}"]
    )


def _headers(scores: list[float], key: str, draws: random.Random) -> Parts:
    many = draws.choice([[f"X-{i}: {key}" for i in range(5000)], [f"X: {'a' * 2**20}"], [f"Set-Cookie: {key}=1"] * 50])
    return _whole(_scores(scores), "200 OK", *many)


HOSTILE: tuple[Callable[[list[float], str, random.Random], Parts], ...] = (
    _status, _body, _body, _wait, _length, _packed, _chunked, _endless, _dripping, _silent, _no_http, _headers,
)  # fmt: skip


def hostile_services(content: dict[str, Any], folder: Path, number: int, seed: int) -> Outcome:
    """Some requests are answered, then a service is hostile, for a time or for good; then a good one."""
    draws, outcome, said = random.Random(seed), Outcome(), folder / "said.txt"
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        spec = {"type": "http", "url": url, "name": "served", "batch_size": 16, "token_env": "CAMPAIGN_KEY"}
        spec |= {"timeout": 1, "retries": 1, "backoff": 0.05}
        content = content | {"reward": {"functions": [spec]}}
        recipe = write_recipe(folder / "mine", content)
        words = ["prepare", str(recipe), "--only", "score"]
        assert _served(listening, words, said, 10**9, None, seed) == 0, said.read_text()
        expected = results(recipe.parent / "run")
        for fault in range(number):
            shutil.rmtree(recipe.parent / "run", ignore_errors=True)
            hostile, well, ill = draws.choice(HOSTILE), draws.randrange(4), draws.choice([1, 2, 10**9])
            name = f"fault {fault}, {hostile.__name__}, after {well}, {ill} times"
            for last in (False, True):
                began = time.monotonic()
                status = _served(listening, words, said, 10**9 if last else well, None if last else hostile, fault, ill)
                text = said.read_text(errors="replace")
                kept = b"".join(path.read_bytes() for path in (recipe.parent / "run").rglob("*") if path.is_file())
                if CANARY in text or CANARY.encode() in kept:
                    outcome.note(LEAK, f"{name}: {text[-300:]}")
                elif not outcome.ended(status, text, name):
                    pass
                elif status and (last or url not in text):
                    outcome.note(NO_HELP, f"{name}: {text[-300:]}")
                elif last and (differ := differing(results(recipe.parent / "run"), expected)):
                    outcome.note(OTHER_RESULTS, f"{name}: {differ[:4]}")
                elif not last:
                    outcome["a clear line, then as undisturbed" if status else "got over it"] += 1
                outcome["longest seconds"] = max(outcome["longest seconds"], round(time.monotonic() - began))
    outcome["faults"] = number
    return outcome


def _served(
    listening: socket.socket, words: list[str], said: Path, well: int, hostile: Any, seed: int, ill: int = 0
) -> int | None:
    """The status of a command while a service answers so many requests well, and some others not."""
    service = get_context("fork").Process(target=_serve, args=(listening, well, hostile, ill, seed))
    service.start()
    try:
        return finished(words, said, _SECONDS, _within_limits)
    finally:
        service.kill()
        service.join()


def _within_limits() -> None:
    client._LONGEST_WAIT = 1.0
    os.environ |= {"CAMPAIGN_KEY": CANARY, "NO_PROXY": "127.0.0.1"}
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    data = int(status["VmData"].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (data + _MEMORY, data + _MEMORY))


def _serve(listening: socket.socket, well: int, hostile: Any, ill: int, seed: int) -> None:
    draws = random.Random(seed)

    class Handler(socketserver.StreamRequestHandler):
        asked = 0

        def handle(self) -> None:
            head = b""
            while (line := self.rfile.readline()).strip():
                head += line
            if b"Content-Length: " not in head:
                return
            fields = dict(line.split(": ", 1) for line in head.decode("latin-1").splitlines()[1:])
            texts = json.loads(self.rfile.read(int(fields["Content-Length"])))["completions"]
            Handler.asked += 1
            scores = [len(text) / 10 for text in texts]
            if hostile is None or Handler.asked <= well or Handler.asked > well + ill:
                parts: Parts = _whole(_scores(scores))
            else:
                parts = hostile(scores, fields.get("Authorization", "").removeprefix("Bearer "), draws)
            try:
                for part in parts:
                    self.wfile.write(part)
            except OSError:  # the client has given up, as it should
                return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    server.serve_forever(0.01)
