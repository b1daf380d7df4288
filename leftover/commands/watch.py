"""`leftover watch`: the report of a run in progress, served to this machine alone. Reads, and never writes."""

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click

from leftover.errors import UserError
from leftover.monitoring.terminal import harmless
from leftover.recipe.files import load_recipe
from leftover.report.page import Live, page_text, view_of
from leftover.runs.finished import FinishedRun
from leftover.runs.going import at_work
from leftover.trust import no_code

HOST = "127.0.0.1"
# Files of a run's folder, and of its rounds, that change when there is something new to show.
_TELLING = (
    "recipe.yaml", "manifest.json", "table/manifest.json", "prepare.json", "results.json", "comparison.json",
    "rounds.json", "frontier.json", "writer.lock", "reference/metrics.jsonl", "policies/*/*/metrics.jsonl",
    "judge/results/*.json",
)  # fmt: skip
# A page is made anew at most so often: seconds, and as a multiple of what the last one took.
_AT_LEAST, _TIMES = 5.0, 1.0


class Watched:
    """The page of a run's folder, made anew when the folder has changed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = threading.Lock()
        self._shown, self._page, self._due = "", "", 0.0

    def state(self) -> str:
        """A digest of what there is to show; for some seconds after a page was made, of what it shows."""
        return self._shown if time.monotonic() < self._due else self._now()

    def page(self) -> str:
        """The newest page. Raises UserError or OSError where the run cannot be read at the moment."""
        with self._lock:
            if (state := self.state()) != self._shown:
                started = time.monotonic()
                with no_code():
                    live = Live(state, time.strftime("%H:%M:%S"), self.doing())
                    page = page_text([view_of(self.folder, live=True)], self.folder, live)
                taken = time.monotonic() - started
                self._shown, self._page = state, page
                self._due = time.monotonic() + max(_AT_LEAST, _TIMES * taken)
            return self._page

    def doing(self) -> str:
        """Where the run is, in a few words."""
        with no_code():
            run = FinishedRun(self.folder)
            doing = at_work(run)
            if doing is not None:
                return f"at work: {doing}"
            return "stopped before its end" if run.unfinished() else "finished"

    def _now(self) -> str:
        return hashlib.sha256("\n".join(self._marks()).encode()).hexdigest()[:16]

    def _marks(self) -> Iterator[str]:
        for pattern in (*_TELLING, *(f"rounds/*/{name}" for name in _TELLING)):
            for path in sorted(self.folder.glob(pattern)):
                try:
                    found = path.stat()
                except FileNotFoundError:  # it was replaced
                    continue
                yield f"{path} {found.st_mtime_ns} {found.st_size}"


def handler(watched: Watched) -> type[BaseHTTPRequestHandler]:
    """Answers `/` with the page, `/state` with its state, `/doing` with where the run is, and nothing else.

    HEAD is answered as GET, without the body.
    """

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "leftover", ""

        def do_GET(self) -> None:
            # A page of another site may reach this address under a name of its own (DNS rebinding).
            port = self.request.getsockname()[1]
            if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
                self._answer(HTTPStatus.FORBIDDEN, "text/plain", "This page is for the machine it is made on.")
            elif self.path == "/state":
                self._answer(HTTPStatus.OK, "text/plain", watched.state())
            elif self.path == "/":
                self._told(watched.page, "text/html")
            elif self.path == "/doing":
                self._told(watched.doing, "text/plain")
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", "There is only one page: /")

        do_HEAD = do_GET

        def _told(self, make: Callable[[], str], kind: str) -> None:
            try:
                text = make()
            except (UserError, OSError) as error:  # such as files that the run is replacing
                said = f"The run cannot be shown at the moment: {error}\nThis page looks again."
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", said, Refresh=f"{_AT_LEAST:.0f}")
            else:
                self._answer(HTTPStatus.OK, kind, text)

        def _answer(self, status: HTTPStatus, kind: str, text: str, **headers: str) -> None:
            body = text.encode(errors="replace")
            self.send_response(status)
            headers |= {
                "Content-Type": f"{kind}; charset=utf-8",
                "Content-Length": str(len(body)),
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                "X-Frame-Options": "DENY",
            }
            for name, value in headers.items():
                self.send_header(name, value)
            with contextlib.suppress(ConnectionError):  # whoever asked has gone, as a page does that is loaded anew
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Requests are not news."""

    return Handler


def watch(folder: str | Path, port: int = 0) -> None:
    """Serve the page of the run in `folder` on this machine's own address until Ctrl-C.

    `port`: 0 for any that is free. Raises UserError for a folder without a run, and for a port that is taken.
    """
    path = Path(folder)
    if not (path / "recipe.yaml").is_file():
        FinishedRun(path)  # says what is wrong
    load_recipe(path)
    try:
        server = ThreadingHTTPServer((HOST, port), handler(Watched(path)))
    except (OSError, OverflowError) as error:
        raise UserError(f"--port {port}: {error}; leave it out for one that is free") from error
    server.daemon_threads = True
    with server:
        click.echo(f"Watching {harmless(str(path))} at http://{HOST}:{server.server_address[1]}/ (Ctrl-C stops)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("Stopped watching; the run is not touched.")
