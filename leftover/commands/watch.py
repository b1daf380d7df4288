"""`leftover watch`: the report of a run in progress, served to this machine alone. Reads, and never writes."""

import hashlib
import threading
import time
from collections.abc import Iterator
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
from leftover.trust import no_code

HOST = "127.0.0.1"
# Files of a run's folder, and of its rounds, that change when there is something new to show.
_TELLING = (
    "recipe.yaml", "manifest.json", "table/manifest.json", "prepare.json", "results.json", "comparison.json",
    "rounds.json", "frontier.json", "policies/*/*/metrics.jsonl", "judge/results/*.json",
)  # fmt: skip
# A page is made anew at most so often: seconds, and as a multiple of what the last one took.
_AT_LEAST, _TIMES = 5.0, 10.0


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
                    live = Live(state, time.strftime("%H:%M:%S") + _at_work(self.folder))
                    page = page_text([view_of(self.folder)], self.folder, live)
                taken = time.monotonic() - started
                self._shown, self._page = state, page
                self._due = time.monotonic() + max(_AT_LEAST, _TIMES * taken)
            return self._page

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


def _at_work(folder: Path) -> str:
    """What a run has begun and not finished, for the head of the page."""
    run = FinishedRun(folder)
    manifests = (run.table.manifest, run.manifest)
    begun = [m.label + name for m in manifests for name, entry in m.entries.items() if not entry["complete"]]
    return f"; at work on {', '.join(begun)}" if begun else ""


def handler(watched: Watched) -> type[BaseHTTPRequestHandler]:
    """Answers `/` with the page and `/state` with its state, and nothing else."""

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
                self._page()
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", "There is only one page: /")

        def _page(self) -> None:
            try:
                page = watched.page()
            except (UserError, OSError) as error:  # such as files that the run is replacing
                said = f"The run cannot be shown at the moment: {error}\nThis page looks again."
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", said, Refresh=f"{_AT_LEAST:.0f}")
            else:
                self._answer(HTTPStatus.OK, "text/html", page)

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
            self.end_headers()
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
            click.echo("Stopped watching; the run goes on.")
