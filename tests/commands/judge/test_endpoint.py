"""A judge behind a real HTTP server: answers, faults, retries, limits, keys, and what a stopped command keeps."""

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from leftover.commands.judge.ask import VerdictStore, ask_all
from leftover.commands.judge.endpoint import JudgeSettings
from leftover.commands.judge.questions import Criterion, judged_pairs, make_questions
from leftover.errors import UserError
from tests.commands.judge.judge_service import JudgeService, answer, make_pairs, prefers, says, status
from tests.forked import forked
from tests.store.test_folders import another_process_holds

CANARY = "k/9+canary-7f3a=="
GOOD = [Criterion("good", "Which is good?")]
THREE = make_pairs(("good x", "y"), ("u", "good v"), ("w", "z"))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


@pytest.fixture
def service() -> Iterator[JudgeService]:
    started = JudgeService()
    yield started
    started.close()


def settings_of(service, **settings):
    return JudgeSettings(**{"model": "stub", "base_url": service.url, "retries": 1, "timeout": 5, **settings})


def ask(service, folder, pairs=THREE, **settings):
    """Ask what is not answered; returns the outcomes, the records and what failed."""
    chosen = settings_of(service, **settings)
    questions = make_questions(pairs, GOOD, chosen)
    with VerdictStore(folder) as store:
        failures = ask_all(questions, store, chosen, None, "test")
    records = VerdictStore(folder).records
    return [j.outcome for j in judged_pairs(pairs, questions, records, "good")], records, failures


def stored(folder):
    return [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]


# Good answers


def test_a_judge_with_known_preferences_gives_them_back(service, tmp_path):
    outcomes, records, failures = ask(service, tmp_path)
    assert outcomes == [1, 0, 0.5] and not failures
    assert sorted(service.asked()) == sorted(
        [(f"prompt {i}", *texts) for i, (a, b) in enumerate([("good x", "y"), ("u", "good v"), ("w", "z")])
         for texts in ((a, b), (b, a))]
    )  # fmt: skip
    assert all(r["asks"] == 1 and r["prompt_tokens"] == 100 and r["model"] == "stub-1" for r in records.values())
    assert {r["path"] for r in service.requests} == {"/v1/chat/completions"}
    assert {(r["model"], r["temperature"]) for r in service.requests} == {("stub", 0)}


def test_a_judge_that_always_takes_the_first_makes_ties(service, tmp_path):
    service.then = answer("Verdict: A")
    outcomes, records, _ = ask(service, tmp_path)
    assert outcomes == [0.5] * 3 and {r["verdict"] for r in records.values()} == {"A"}


def test_fields_of_the_request_are_the_users(service, tmp_path):
    fields = {"temperature": None, "max_completion_tokens": 50, "chat_template_kwargs": {"enable_thinking": False}}
    ask(service, tmp_path, request=fields)
    for request in service.requests:
        assert "temperature" not in request and request["max_completion_tokens"] == 50
        assert request["chat_template_kwargs"] == {"enable_thinking": False}


def test_equal_questions_are_asked_once(service, tmp_path):
    pairs = [*make_pairs(("good x", "y"), seed=0), *make_pairs(("good x", "y"), seed=1)]
    outcomes, _, _ = ask(service, tmp_path, pairs)
    assert outcomes == [1, 1] and len(service.requests) == 2


def test_requests_run_at_once_up_to_the_limit(service, tmp_path):
    running, most, lock = [0], [0], threading.Lock()

    def slow(request):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.05)
        with lock:
            running[0] -= 1
        return prefers("good")(request)

    service.then = slow
    assert ask(service, tmp_path, parallel=3)[0] == [1, 0, 0.5]
    assert 1 < most[0] <= 3


def test_requests_keep_to_the_rate_and_second_tries_too(service, tmp_path, monkeypatch):
    # Time stands still, and waiting is written down: seven requests in one instant, one of them a second try.
    waited = []

    class Stop(threading.Event):
        def wait(self, timeout=None):
            waited.append(timeout)
            return self.is_set()

    monkeypatch.setattr("leftover.commands.judge.ask.threading", SimpleNamespace(Event=Stop, Lock=threading.Lock))
    monkeypatch.setattr("leftover.commands.judge.endpoint.time", SimpleNamespace(monotonic=lambda: 100.0))
    service.plan = [status(500)]
    ask(service, tmp_path, requests_per_minute=1200)
    assert len(service.times) == 7
    assert sorted(waited) == pytest.approx([turn * 60 / 1200 for turn in range(7)])


# Faults that pass


@pytest.mark.parametrize("fault", [status(429), status(500), status(503), status(408)])
def test_a_passing_fault_is_tried_again(fault, service, tmp_path):
    service.plan = [fault]
    outcomes, _, failures = ask(service, tmp_path)
    assert outcomes == [1, 0, 0.5] and not failures and len(service.requests) == 7


def test_a_judge_that_asks_for_time_gets_it(service, tmp_path):
    service.plan = [status(429, Retry_After="1")]
    ask(service, tmp_path, parallel=1)
    assert service.times[1] - service.times[0] >= 1
    assert service.times[2] - service.times[1] < 1


def late(request):
    time.sleep(2)
    return says("Verdict: A")


def cut(request):
    return 200, {"Content-Length": "1000", "Connection": "close"}, b'{"choices": ['


@pytest.mark.parametrize("fault", [late, cut])
def test_an_answer_that_comes_late_or_is_cut_is_asked_for_again(fault, service, tmp_path):
    service.plan = [fault]
    outcomes, _, failures = ask(service, tmp_path, timeout=1)
    assert outcomes == [1, 0, 0.5] and not failures


# Faults that stay


@pytest.mark.parametrize(
    ("step", "expected", "requests"),
    [
        (status(503), "status 503, tried 2 times", 2),
        (status(400, {"error": {"message": "too long"}}), "status 400; it answered .*too long", 1),
        (status(401), "status 401 .*--token-env", 1),
        (status(404), "status 404 .*/v1", 1),
        (late, "no answer, tried 2 times: Request timed out", 2),
        (cut, "no answer, tried 2 times: Connection error", 2),
        (status(200, b"<html>Welcome"), "not that of a chat completion", 1),
        (lambda _: (200, {"Content-Type": "text/html"}, b"<html>Welcome"), "not that of a chat completion: <html>", 1),
        (status(200, {"choices": []}), "not that of a chat completion", 1),
        (status(200, {"choices": "none"}), "not that of a chat completion", 1),
        (status(200, {"choices": [{}]}), "not that of a chat completion", 1),
        (status(200, [1]), "not that of a chat completion", 1),
        (status(200, b"[" * 100_000), "not that of a chat completion", 1),
        (status(200, b""), "not that of a chat completion", 1),
    ],
)
def test_a_fault_that_stays_is_said_with_the_address(step, expected, requests, service, tmp_path):
    service.then = step
    with pytest.raises(UserError, match=f"judge {service.url}: .*{expected}.*0 of 6 answers") as error:
        ask(service, tmp_path, parallel=1, timeout=0.2 if step is late else 5)
    asked = len(service.requests) / requests
    if step is late:  # what is given up on a busy machine may not have reached the service
        assert asked <= 6
    elif "status 401" in str(error.value) or "status 404" in str(error.value):
        assert asked == 1, "a key or a model is wrong for all"
    else:
        assert 5 <= asked <= 6, "five in a row, and perhaps the sixth, or its first try, before they were counted"
    assert len(str(error.value)) < 700


def test_failures_between_answers_are_not_taken_for_a_service_that_is_down(service, tmp_path):
    pairs = make_pairs(*[(f"good {i}", "y") for i in range(10)])
    service.plan = [status(503), prefers("good")] * 10
    failures = ask(service, tmp_path, pairs, parallel=1, retries=0)[2]
    assert len(failures) == 10 and len(service.requests) == 20


def test_few_questions_that_fail_are_said_one_by_one(service, tmp_path):
    service.then = status(503)
    outcomes, _, failures = ask(service, tmp_path, THREE[:1])
    assert outcomes == [None] and len(failures) == 2
    assert failures[0].startswith(f"judge {service.url}: status 503, tried 2 times")


def test_questions_that_are_refused_do_not_stop_a_judge_that_has_answered_others(service, tmp_path):
    pairs = make_pairs(*[(f"good {i}", "y") for i in range(10)])
    service.plan, service.then = [prefers("good")], status(400)
    failures = ask(service, tmp_path, pairs, parallel=1)[2]
    assert len(failures) == 19 and len(service.requests) == 20
    again = ask(service, tmp_path, pairs, parallel=1)[2]
    assert len(again) == 19, "nor when the same command asks them again"


def test_a_service_that_asks_for_more_time_than_is_given_is_not_said_to_be_tried_again(service, tmp_path):
    service.then = status(429, Retry_After="1000")
    failures = ask(service, tmp_path, THREE[:1], retries=3)[2]
    assert len(service.requests) == 2 and "status 429; it answered" in failures[0]


def test_a_refused_connection_is_said(service, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UserError, match=f"judge {url}: no answer, tried 2 times: Connection error.*refused"):
        ask(service, tmp_path, base_url=url)


def test_a_service_that_goes_down_is_not_asked_to_the_end(service, tmp_path):
    pairs = make_pairs(*[(f"good {i}", "y") for i in range(50)])
    service.plan, service.then = [prefers("good")] * 4, status(500)
    with pytest.raises(UserError, match=r"4 of 100 answers .*same command"):
        ask(service, tmp_path, pairs, parallel=1, retries=0)
    assert len(service.requests) <= 4 + 5 + 1
    service.then = prefers("good")
    service.requests.clear()
    assert ask(service, tmp_path, pairs)[0] == [1] * 50
    assert len(service.requests) == 96


def test_one_question_that_fails_takes_no_other_along(service, tmp_path):
    def picky(request):
        return (400, {}, {"error": "too long"}) if request["prompt"] == "prompt 1" else prefers("good")(request)

    service.then = picky
    outcomes, _, failures = ask(service, tmp_path)
    assert outcomes == [1, None, 0.5] and len(failures) == 2 and "status 400" in failures[0]
    service.then = prefers("good")
    service.requests.clear()
    assert ask(service, tmp_path)[0] == [1, 0, 0.5] and len(service.requests) == 2


@pytest.mark.parametrize("text", ["I like both.", "", None, "Verdict: C"])
def test_an_answer_without_a_verdict_is_asked_for_once_more_and_kept_as_one(text, service, tmp_path):
    def undecided(request):
        return says(text) if request["prompt"] == "prompt 0" else prefers("good")(request)

    service.then = undecided
    outcomes, records, failures = ask(service, tmp_path)
    assert outcomes == [None, 0, 0.5] and not failures
    kept = [r for r in records.values() if r["verdict"] is None]
    assert [(r["asks"], r["prompt_tokens"], r["completion_tokens"]) for r in kept] == [(2, 200, 20)] * 2
    service.requests.clear()
    ask(service, tmp_path)
    assert not service.requests, "it was paid for"


def test_what_was_paid_is_kept_where_the_second_ask_fails(service, tmp_path):
    service.plan, service.then = [answer("I like both.")], status(500)
    _, records, failures = ask(service, tmp_path, THREE[:1], parallel=1, retries=0)
    assert [(r["verdict"], r["asks"], r["prompt_tokens"]) for r in records.values()] == [(None, 1, 100)]
    assert len(failures) == 1


def test_a_refusal_is_kept_as_what_was_said(service, tmp_path):
    message = {"role": "assistant", "content": None, "refusal": "I will not judge this."}
    service.then = answer(None, choices=[{"index": 0, "finish_reason": "stop", "message": message}])
    _, records, _ = ask(service, tmp_path, THREE[:1])
    assert {r["answer"] for r in records.values()} == {"I will not judge this."}


def test_a_service_that_counts_no_tokens_is_served(service, tmp_path):
    service.then = answer("Verdict: A", usage=None)
    _, records, _ = ask(service, tmp_path)
    assert {(r["prompt_tokens"], r["completion_tokens"]) for r in records.values()} == {(None, None)}


# What is kept


def test_every_answer_is_on_the_disk_before_the_next_is_there(service, tmp_path):
    seen = []

    def counts(request):
        path = tmp_path / "verdicts.jsonl"
        seen.append(len(path.read_text().splitlines()) if path.is_file() else 0)
        return prefers("good")(request)

    service.then = counts
    ask(service, tmp_path, parallel=1)
    assert seen == [0, 1, 2, 3, 4, 5]


def test_a_killed_command_goes_on_and_pays_for_nothing_twice(service, tmp_path):
    pairs = make_pairs(*[("good", f"y {i}") for i in range(20)])
    enough = threading.Event()

    def slow(request):
        if len(service.requests) > 15:
            enough.set()
            time.sleep(3)  # so that it is killed with these under way
        return prefers("good")(request)

    service.then = slow
    process = forked(lambda: ask(service, tmp_path, pairs, parallel=2), tmp_path / "said.txt")
    assert enough.wait(60)
    process.kill()
    process.join()
    kept = stored(tmp_path)
    assert 10 <= len(kept) < 20
    (tmp_path / "verdicts.jsonl").open("a").write('{"key": "half a li')  # what a kill may leave behind
    service.requests.clear()
    service.then = prefers("good")
    assert ask(service, tmp_path, pairs)[0] == [1] * 20
    assert len(service.requests) == 40 - len(kept)
    assert stored(tmp_path)[: len(kept)] == kept, "only ever appended to"


def test_a_line_that_is_no_verdict_is_refused_with_its_number(tmp_path):
    (tmp_path / "verdicts.jsonl").write_text('{"key": "a"}\nnonsense\n{"key": "b"}\n')
    with pytest.raises(UserError, match=r"verdicts.jsonl, line 2: not a verdict .* remove the line"):
        VerdictStore(tmp_path)


def test_two_commands_do_not_write_one_file(tmp_path):
    with (
        another_process_holds(tmp_path / "verdicts.jsonl"),
        pytest.raises(UserError, match=r"verdicts\.jsonl is being"),
    ):
        VerdictStore(tmp_path).__enter__()
    with VerdictStore(tmp_path):
        pass  # free again


def test_texts_of_any_kind_are_kept_on_one_line(tmp_path):
    text = "a\u2028b\nc \ud800 👍"
    with VerdictStore(tmp_path) as store:
        store.append({"key": "k", "answer": text})
        store.append({"key": "l", "answer": ""})
    assert set(VerdictStore(tmp_path).records) == {"k", "l"}


# Keys


def echo(code):
    """A service that says the key back, escaped in every way."""

    def step(request):
        said = request["headers"]["Authorization"]
        if code == 200:
            return says(f"{said} {json.dumps(said)}\nVerdict: A", model=said)
        forms = [said, said.replace("/", "\\/"), quote(said, safe=""), "".join(f"\\u{ord(c):04X}" for c in said)]
        return code, {}, {"error": {"message": f"Incorrect key {said}", "echo": forms}}

    return step


@pytest.mark.parametrize("step", [echo(200), echo(401), echo(500), echo(400), late, cut])
def test_a_key_appears_in_no_message_log_or_file(step, service, tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("JUDGE_KEY", f" {CANARY}\n")
    caplog.set_level(logging.DEBUG)
    service.then = step
    shown = []
    try:
        ask(service, tmp_path, token_env="JUDGE_KEY", timeout=1)
    except UserError as error:
        while error is not None:  # what --debug shows
            shown.append(str(error))
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert service.requests[0]["headers"]["Authorization"] == f"Bearer {CANARY}"
    shown += [caplog.text, *capfd.readouterr(), repr(settings_of(service, token_env="JUDGE_KEY"))]
    shown += [path.read_text() for path in tmp_path.iterdir()]
    assert shown and not [text for text in shown if "canary" in text or r"\\u0063\\u0061\\u006E" in text]


def test_the_key_of_the_hosted_service_goes_nowhere_else_unless_asked(service, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    ask(service, tmp_path)
    assert not [r for r in service.requests if CANARY in r["headers"]["Authorization"]]
    service.requests.clear()
    ask(service, tmp_path / "asked", token_env="OPENAI_API_KEY")
    assert {r["headers"]["Authorization"] for r in service.requests} == {f"Bearer {CANARY}"}
    service.requests.clear()
    monkeypatch.setenv("OPENAI_BASE_URL", service.url)  # the environment's own address
    ask(service, tmp_path / "environment", base_url=None)
    assert {r["headers"]["Authorization"] for r in service.requests} == {f"Bearer {CANARY}"}


def test_a_key_that_is_missing_is_said_before_anything_is_asked(service, tmp_path):
    with pytest.raises(UserError, match="the environment variable JUDGE_KEY"):
        ask(service, tmp_path, token_env="JUDGE_KEY")
    with pytest.raises(UserError, match=r"no key for https://api.openai.com/v1: .*OPENAI_API_KEY"):
        ask(service, tmp_path, base_url=None)
    assert not service.requests
