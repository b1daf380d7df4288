"""A real HTTP server whose answers a test scripts."""

import json
import threading
import time
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

Step = Callable[[dict[str, Any]], tuple[int, dict[str, str], Any]]


class ScriptedService:
    """`plan` holds what the next requests get, then `then`: request -> (status, headers, body), JSON unless bytes.

    A generator's parts are sent one by one, to the end of the connection.

    Subclasses say where it answers, which headers every answer has, and what a request is to a test (`received`).
    """

    path = "/"
    answer_headers: ClassVar[dict[str, str]] = {}

    def __init__(self, then: Step) -> None:
        self.plan: list[Step] = []
        self.then = then
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        lock, service = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    request = service.received(body, dict(self.headers), self.path)
                    service.times.append(time.monotonic())
                    step = service.plan.pop(0) if service.plan else service.then
                status, headers, answer = step(request)
                parts = isinstance(answer, Generator)
                sent = answer if isinstance(answer, bytes) else b"" if parts else json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    length = {"Connection": "close"} if parts else {"Content-Length": str(len(sent))}
                    whole = {**service.answer_headers, **length, **headers}
                    for name, value in whole.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(sent)
                    for part in answer if parts else ():
                        self.wfile.write(part)
                except OSError:  # the client has given up, as it should
                    self.close_connection = True
                if parts or headers.get("Connection") == "close":
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                """Nothing on stderr."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 64

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}{self.path}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def received(self, body: dict[str, Any], headers: dict[str, str], path: str) -> dict[str, Any]:
        """Keep a request; returns what its step is given."""
        raise NotImplementedError

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
