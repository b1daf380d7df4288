"""`leftover watch`: the page of a run in progress over loopback. It only reads, and answers its own page alone."""

import http.client
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from leftover import cli
from leftover.commands import watch
from leftover.commands.watch import HOST, Watched, handler
from leftover.errors import UserError
from leftover.pipeline import prepare
from leftover.recipe.files import make_recipe
from leftover.report.page import write_report_page
from leftover.runs import going
from leftover.runs.claim import open_run
from leftover.store.folders import LOCK, is_held


@contextmanager
def served(folder: Path) -> Iterator[Callable[..., tuple[int, str]]]:
    """`get(path, host=None)` -> status and body, of a server on a port of its own."""
    server = watch.ThreadingHTTPServer((HOST, 0), handler(Watched(folder)))
    port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def get(path: str, host: str | None = None, method: str = "GET") -> tuple[int, str]:
        connection = http.client.HTTPConnection(HOST, port, timeout=60)
        connection.request(method, path, headers={} if host is None else {"Host": host.format(port=port)})
        answer = connection.getresponse()
        found = answer.status, answer.read().decode()
        connection.close()
        return found

    get.address = f"http://{HOST}:{port}/"  # type: ignore[attr-defined]
    try:
        yield get
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}


def test_a_finished_run_is_served_and_nothing_in_its_folder_changes(tmp_path: Path, tiny_run: Any) -> None:
    tiny_run(tmp_path)
    before = everything(tmp_path)
    with served(tmp_path / "run") as get:
        status, page = get("/")
    assert status == 200 and "Completions side by side" in page and "live, read at" in page
    assert "connect-src &#39;self&#39;" in page, "its script may ask for the state"
    assert everything(tmp_path) == before


def test_only_the_page_and_its_state_are_answered(tmp_path: Path, tiny_run: Any) -> None:
    tiny_run(tmp_path)
    with served(tmp_path / "run") as get:
        for path in ("/recipe.yaml", "/../recipe.yaml", "/index.html", "/evaluation/reference.jsonl"):
            assert get(path)[0] == 404, path
        assert get("/", method="POST")[0] == 501
        assert get("/", method="HEAD")[0] == 200 and get("/recipe.yaml", method="HEAD")[0] == 404
        port = int(get.address.rpartition(":")[2].strip("/"))  # type: ignore[attr-defined]
        with socket.create_connection((HOST, port)) as connection, connection.makefile("rb") as answer:
            connection.sendall(f"HEAD / HTTP/1.0\r\nHost: {HOST}:{port}\r\n\r\n".encode())
            head, _, body = answer.read().partition(b"\r\n\r\n")
        assert b"Content-Length: " in head and body == b""
        assert get("/doing") == (200, "finished")
        assert get("/", host="evil.example:{port}")[0] == 403
        assert get("/state", host="evil.example")[0] == 403
        assert get("/", host="127.0.0.1.evil.example:{port}")[0] == 403
        assert get("/state", host="localhost:{port}")[0] == 200


def test_a_browser_that_has_gone_is_no_news(
    tmp_path: Path, tiny_run: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_run(tmp_path)
    monkeypatch.setattr(Watched, "page", lambda self: "x" * 10_000_000)  # more than a socket holds
    with served(tmp_path / "run") as get:
        port = int(get.address.rpartition(":")[2].strip("/"))  # type: ignore[attr-defined]
        with socket.create_connection((HOST, port)) as connection:
            connection.sendall(f"GET / HTTP/1.0\r\nHost: {HOST}:{port}\r\n\r\n".encode())
            connection.recv(1)
        assert get("/doing") == (200, "finished")
    assert "Traceback" not in capfd.readouterr().err


def test_a_run_without_any_evaluation_shows_what_is_known(tmp_path: Path, tiny_recipe: Any) -> None:
    run = open_run(make_recipe(tiny_recipe(tmp_path)))
    with served(run.folder) as get:
        status, page = get("/")  # nothing is prepared
        assert status == 200 and "Unfinished" in page
        prepare(run, "score")
        run.manifest.begin("reference", {})
    run.close()
    with served(run.folder) as get:
        status, page = get("/")
    assert status == 200 and "this run is not finished" in page and "stopped before its end" in page


def test_a_run_that_goes_on_says_where_it_is_and_asks_for_no_second_one(tmp_path: Path, tiny_run: Any) -> None:
    """Its lock names this process; the policy is begun anew, and its log has come to a line and a half."""
    run = open_run(make_recipe(tiny_run(tmp_path)))
    folder, name = run.folder / "policies/a_lol_seq/seed-0", "policy a_lol_seq, seed 0"
    run.manifest.begin(name, run.manifest.entries[name]["key"] | {"seed": "other"})
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 3, "loss": 1.0}) + '\n{"step": 4, "lo')
    before = everything(tmp_path)
    with served(run.folder) as get:
        (_, page), doing = get("/"), get("/doing")[1]
        where = "step 3 of 4, policy a_lol_seq, seed 0"
        assert doing == f"at work: {where}"
        assert f"this run is still going ({where}); this page refreshes itself" in re.sub("<[^>]+>", "", page)
        assert "It is continued by" not in page and everything(tmp_path) == before
        run.close()
        assert get("/doing")[1] == "stopped before its end"
    page = write_report_page([run.folder]).read_text()
    assert "It is continued by" in page and "still going" not in page


@pytest.mark.parametrize(
    ("holder", "held"),
    [
        ({"process": os.getpid(), "host": socket.gethostname()}, True),
        ({"process": 2**22 + 1, "host": socket.gethostname()}, False),  # beyond the largest id there can be
        ({"process": 2**22 + 1, "host": "elsewhere"}, True),
        ({"host": "elsewhere"}, False),
        ({"process": 2**70, "host": socket.gethostname()}, False),
        (None, False),
    ],
)
def test_who_writes_a_folder_is_told_by_its_lock(tmp_path: Path, holder: dict[str, Any] | None, held: bool) -> None:
    assert not is_held(tmp_path)
    (tmp_path / LOCK).write_text(json.dumps(holder))
    assert is_held(tmp_path) == held


def test_steps_without_a_limit_are_told_by_epochs() -> None:
    assert going._of({"step": 20, "epoch": 0.5}, {"num_train_epochs": 2}) == " of 80"
    assert going._of({"step": 20, "epoch": 0.5}, {"num_train_epochs": 2, "max_steps": 30}) == " of 30"
    assert going._of({"step": 20}, {}) == ""


def test_the_page_is_made_anew_when_an_evaluation_arrives(
    tmp_path: Path, tiny_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_AT_LEAST", 0.0)
    monkeypatch.setattr(watch, "_TIMES", 0.0)
    tiny_run(tmp_path)
    watched = Watched(tmp_path / "run")
    first, state = watched.page(), watched.state()
    assert watched.page() is first, "nothing has changed"
    log = tmp_path / "run" / "policies" / "a_lol_seq" / "seed-0" / "metrics.jsonl"
    with log.open("a") as file:
        file.write(json.dumps({"step": 5, "eval_nll": 1.5, "eval_reward/mean": 3.25}) + "\n")
    assert watched.state() != state
    second = watched.page()
    assert second != first and "3.25" in second and "3.25" not in first
    assert json.dumps(watched.state()) in second, "the page knows which state it shows"


def test_a_browser_shows_the_evaluation_that_arrives(
    browser: Any, tmp_path: Path, tiny_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    monkeypatch.setattr(watch, "_AT_LEAST", 0.0)
    monkeypatch.setattr(watch, "_TIMES", 0.0)
    tiny_run(tmp_path)
    with served(tmp_path / "run") as get:
        browser.get(get.address)  # type: ignore[attr-defined]
        assert "3.25" not in browser.page_source
        with (tmp_path / "run" / "policies" / "a_lol_seq" / "seed-0" / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 5, "eval_reward/mean": 3.25}) + "\n")
        WebDriverWait(browser, 60).until(lambda it: "3.25" in it.page_source)
        assert not [line for line in browser.get_log("browser") if "Content Security Policy" in line["message"]]


def test_a_page_is_not_made_at_every_request(tmp_path: Path, tiny_run: Any) -> None:
    tiny_run(tmp_path)
    watched = Watched(tmp_path / "run")
    first = watched.page()
    (tmp_path / "run" / "manifest.json").touch()
    assert watched.page() is first and json.dumps(watched.state()) in first


def test_a_run_that_cannot_be_read_is_told_and_looked_at_again(tmp_path: Path, tiny_run: Any) -> None:
    tiny_run(tmp_path)
    for name in ("manifest.json", "manifest.copy.json"):
        (tmp_path / "run" / name).write_text("{")
    with served(tmp_path / "run") as get:
        status, said = get("/")
    assert status == 503 and "manifest.json" in said


def test_no_run_and_a_taken_port_are_refused(tmp_path: Path, tiny_run: Any) -> None:
    with pytest.raises(UserError, match="is not the folder of a run"):
        watch.watch(tmp_path)
    tiny_run(tmp_path)
    with watch.ThreadingHTTPServer((HOST, 0), handler(Watched(tmp_path))) as other:
        port = other.server_address[1]
        with pytest.raises(UserError, match=f"--port {port}: "):
            watch.watch(tmp_path / "run", port)


def test_ctrl_c_stops_with_one_line(
    tmp_path: Path, tiny_run: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_run(tmp_path)

    def stopped(server: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.ThreadingHTTPServer, "serve_forever", stopped)
    cli.main(["watch", str(tmp_path / "run")])
    address, end = capsys.readouterr().out.splitlines()
    assert "http://127.0.0.1:" in address and end == "Stopped watching; the run is not touched."
