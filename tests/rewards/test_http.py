"""The HTTP reward against a real server: answers, faults, retries, keys, and what a failed run keeps."""

import gzip
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from leftover.errors import UserError
from leftover.prepare import rows as stage
from leftover.prepare.scores import score
from leftover.recipe.files import make_recipe
from leftover.rewards import load_reward
from leftover.rewards.http import HttpReward, read_scores
from leftover.runs.claim import open_run
from leftover.runs.run import Run
from leftover.store.table import column
from tests.conftest import scored_rows
from tests.scripted_service import ScriptedService

CANARY = "k/9+canary-7f3a=="


class Service(ScriptedService):
    """A request is its body, and to a step its headers too, which are kept apart."""

    path = "/score"

    def __init__(self) -> None:
        super().__init__(lengths)
        self.headers: list[dict[str, str]] = []

    def received(self, body: dict[str, Any], headers: dict[str, str], path: str) -> dict[str, Any]:
        self.requests.append(body)
        self.headers.append(headers)
        return body | {"headers": headers}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def service() -> Iterator[Service]:
    started = Service()
    yield started
    started.close()


def reward(service: Service, **settings: Any) -> Any:
    return load_reward({"type": "http", "url": service.url, "backoff": 0.01, **settings})


def lengths(body: dict[str, Any]) -> tuple:
    """The good answer: how long each completion is."""
    return 200, {}, {"scores": [len(text) for text in body["completions"]]}


def answer(content: Any, status: int = 200, **headers: str) -> Callable:
    return lambda body: (status, {name.replace("_", "-"): value for name, value in headers.items()}, content)


def late(body: dict[str, Any]) -> tuple:
    time.sleep(2)
    return lengths(body)


def cut(body: dict[str, Any]) -> tuple:
    """The head of an answer and a part of its body, then the end of the connection."""
    return 200, {"Content-Length": "1000", "Connection": "close"}, b'{"scores": [1.0,'


# Good answers


def test_prompts_and_completions_are_posted_as_they_are_and_scores_come_back_in_order(service):
    chat = [{"role": "user", "content": "Größe?", "name": "Ada"}]
    assert reward(service)(["a", chat], ["", "👍🏽 ok"]) == [0.0, 5.0]
    assert service.requests == [{"prompts": ["a", chat], "completions": ["", "👍🏽 ok"]}]


@pytest.mark.parametrize("body", [{"scores": [1, None, -2.5], "model": "x"}, [True, None, -2.5]])
def test_scores_are_an_object_or_a_bare_list_and_null_is_no_score(body, service):
    service.then = answer(body)
    assert reward(service)(["a"] * 3, ["b"] * 3) == [1.0, None, -2.5]


def test_completions_are_asked_for_in_batches(service):
    assert reward(service, batch_size=2)(["p"] * 5, ["a" * n for n in range(5)]) == [0, 1, 2, 3, 4]
    assert [len(request["completions"]) for request in service.requests] == [2, 2, 1]
    assert reward(service)([], []) == []


def test_parallel_requests_keep_the_order_and_overlap(service):
    running, most = [0], [0]
    lock = threading.Lock()

    def uneven(body: dict[str, Any]) -> tuple:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.1 if body["completions"][0] == "" else 0.02)  # the first answers last
        with lock:
            running[0] -= 1
        return lengths(body)

    service.then = uneven
    texts = ["a" * n for n in range(12)]
    assert reward(service, batch_size=1, max_parallel=4)(["p"] * 12, texts) == [float(n) for n in range(12)]
    assert 1 < most[0] <= 4


# Faults that pass


@pytest.mark.parametrize("fault", [answer({}, 500), answer({}, 503), answer({}, 429), late, cut])
def test_a_passing_fault_is_tried_again(fault, service):
    service.plan = [fault, fault]
    assert reward(service, timeout=1)(["a"], ["bc"]) == [2.0]
    assert len(service.requests) == 3


def test_the_time_that_the_service_names_is_waited_for_and_said(service, caplog):
    service.plan = [answer({}, 429, Retry_After="1")]
    assert reward(service)(["a"], ["bc"]) == [2.0]
    assert 1 <= service.times[1] - service.times[0] < 3
    assert "http reward: status 429; trying again in 1 s, as it asks" in caplog.text


def test_a_service_that_asks_for_a_day_is_asked_sooner(service, caplog, monkeypatch):
    monkeypatch.setattr("leftover.services.client._LONGEST_WAIT", 0.2)
    service.plan = [answer({}, 429, Retry_After="3600")]
    assert reward(service)(["a"], ["bc"]) == [2.0]
    assert "trying again in 0 s, where it asks for 3600" in caplog.text


def drip(body):
    """An answer that begins, and does not end."""

    def parts():
        for _ in range(100):
            yield b" "
            time.sleep(0.1)

    return 200, {}, parts()


def endless(body):
    def parts():
        while True:
            yield b" " * 2**16

    return 200, {}, parts()


def test_an_answer_must_be_whole_in_time(service):
    service.plan = [drip]
    assert reward(service, timeout=0.5)(["a"], ["bc"]) == [2.0], "it is asked again"
    service.then = drip
    began = time.monotonic()
    with pytest.raises(UserError, match="no answer, tried 1 times: the answer had begun, and was not whole in time"):
        reward(service, timeout=0.5, retries=0)(["a"], ["bc"])
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("step", [endless, answer(gzip.compress(b" " * 2**24), Content_Encoding="gzip")])
def test_an_answer_without_end_or_one_that_unpacks_to_too_much_is_refused(step, service, monkeypatch):
    monkeypatch.setattr("leftover.services.client.LONGEST_ANSWER", 2**20)
    service.then = step
    with pytest.raises(UserError, match=r"http reward http.*an answer of more than 1 MiB"):
        reward(service)(["a"], ["bc"])
    assert len(service.requests) == 1


def test_a_time_that_cannot_be_read_is_ignored(service):
    service.plan = [answer({}, 503, Retry_After="soon")]
    assert reward(service)(["a"], ["bc"]) == [2.0]


def test_a_third_try_waits_for_the_backoff(service):
    service.plan = [answer({}, 500)] * 2
    reward(service, backoff=0.2)(["a"], ["bc"])
    first, second = np.diff(service.times)
    # 0.2 * 2, and up to 0.2 more by chance.
    assert first < 0.2 and 0.4 <= second < 0.9


# Faults that stay


@pytest.mark.parametrize(
    ("step", "expected", "tries"),
    [
        (answer("down", 503), r"status 503, tried 3 times; it answered '\"down\"'", 3),
        (answer("full", 429), "status 429, tried 3 times", 3),
        (answer("who?", 401), r"status 401 \(the key comes from the variable that token_env names\)", 1),
        (answer("no such model", 404), "status 404; it answered .*no such model", 1),
        (answer("", 307, Location="/there"), r"status 307 \(a redirect: give the address it leads to\)", 1),
        (late, "no answer, tried 3 times: .*Read timed out", 3),
        (cut, "no answer, tried 3 times: .*IncompleteRead", 3),
        (answer(b"<html>Welcome"), "the answer is not JSON; it answered '<html>Welcome'", 1),
        (answer(b"\xff\xfe"), "the answer is not JSON", 1),
        (answer(b"[" * 100_000), "the answer is not JSON", 1),
        (answer(b""), "the answer is not JSON; it answered ''", 1),
        (answer({"score": [1, 2]}), r'the answer is neither {"scores": \[...\]} nor a list; it answered .*"score"', 1),
        (answer(7), 'the answer is neither {"scores"', 1),
        (answer([1]), r"1 scores for 2 completions; it answered '\[1\]'", 1),
        (answer({"scores": [1, 2, 3]}), "3 scores for 2 completions", 1),
        (answer([1, "good"]), "a score is 'good', neither a finite number nor null", 1),
        (answer([1, [2]]), r"a score is \[2\], neither a finite number nor null", 1),
        (answer(b"[1, NaN]"), "a score is nan, neither a finite number", 1),
        (answer(b"[1, -1e999]"), "a score is -inf, neither a finite number", 1),
        (answer([1, 10**400]), "a score is 1000.*, neither a finite number", 1),
    ],
)
def test_a_fault_that_stays_is_said_with_the_url_and_the_start_of_the_answer(step, expected, tries, service):
    service.then = step
    with pytest.raises(UserError, match=f"http reward {service.url}: {expected}") as error:
        reward(service, retries=2, timeout=1)(["a"] * 2, ["b"] * 2)
    assert len(service.requests) == tries
    assert len(str(error.value)) < 600


def test_a_refused_connection_says_what_to_do():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/score"
    with pytest.raises(UserError, match=f"{url}: no answer, tried 2 times: .*refused.*Start the service and run again"):
        load_reward({"type": "http", "url": url, "retries": 1, "backoff": 0})(["a"], ["b"])


def test_without_retries_a_request_is_made_once(service):
    service.then = answer({}, 500)
    with pytest.raises(UserError, match="status 500, tried 1 times"):
        reward(service, retries=0)(["a"], ["b"])
    assert len(service.requests) == 1


# Keys


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORER_KEY", f" {CANARY}\n")


def test_a_key_from_the_environment_is_sent_in_the_header_that_is_named(service, key):
    reward(service, token_env="SCORER_KEY", headers={"X-Model": 2})(["a"], ["b"])
    assert service.headers[-1]["Authorization"] == f"Bearer {CANARY}"
    assert service.headers[-1]["X-Model"] == "2"
    reward(service, token_env="SCORER_KEY", token_header="X-API-Key")(["a"], ["b"])
    assert service.headers[-1]["X-API-Key"] == CANARY
    assert "Authorization" not in service.headers[-1]


def echo(status: int) -> Callable:
    """A service that says the key back, escaped in every way."""

    def step(body: dict[str, Any]) -> tuple:
        said = body["headers"].get("Authorization", "")
        escaped = said.replace("/", "\\/").encode() + b" " + json.dumps([said]).encode()
        return status, {}, escaped

    return step


@pytest.mark.parametrize(
    "step", [echo(401), echo(503), echo(200), late, cut, lambda body: (200, {}, [body["headers"]["Authorization"]])]
)
def test_a_key_appears_in_no_message_log_identity_or_repr(step, service, key, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    service.then = step
    scorer = reward(service, token_env="SCORER_KEY", retries=1, timeout=1)
    with pytest.raises(UserError) as error:
        scorer(["a"], ["b"])
    assert service.headers[0]["Authorization"] == f"Bearer {CANARY}"
    shown = [str(error.value), caplog.text, json.dumps(scorer.identity()), repr(scorer), str(vars(scorer))]
    for text in (*shown, *capfd.readouterr()):
        assert "canary" not in text


def test_a_key_that_is_not_set_or_cannot_be_sent_is_refused_without_showing_it(service, monkeypatch):
    scorer = reward(service, token_env="SCORER_KEY")
    monkeypatch.delenv("SCORER_KEY", raising=False)
    with pytest.raises(UserError, match=r"environment variable SCORER_KEY \(token_env\) is not set"):
        scorer(["a"], ["b"])
    monkeypatch.setenv("SCORER_KEY", "canary\r\nX: y")
    with pytest.raises(UserError, match="characters that a header cannot") as error:
        scorer(["a"], ["b"])
    assert "canary" not in str(error.value) and not service.requests


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "http://me:canary@host/score"},
        {"url": "https://canary@host/score"},
        {"url": "https://host/score?api_key=canary"},
        {"headers": {"Authorization": "Bearer canary"}},
        {"headers": {"X-Api-Key": "canary"}},
        {"headers": {"X-Model": "canary\r\nX: y"}},
        {"token_env": "sk-canary"},
        {"token_header": "Bearer canary"},
    ],
)
def test_credentials_in_a_recipe_are_refused_without_showing_them(settings):
    with pytest.raises(UserError, match="http reward") as error:
        load_reward({"type": "http", "url": "http://host/score"} | settings)
    assert "canary" not in str(error.value)


def test_credentials_in_a_url_given_by_position_are_refused():
    with pytest.raises(UserError, match="holds credentials") as error:
        HttpReward("http://me:canary@host/score")
    assert "canary" not in str(error.value)


# Settings


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"url": "host/score"}, "url is not of the form http://host:port/path"),
        ({"url": "ftp://host"}, "url is not of the form"),
        ({"url": "http://host:port"}, "url is not of the form"),
        ({"url": 7}, "url is not of the form"),
        ({"batch_size": 0}, "batch_size: Input should be greater than or equal to 1"),
        ({"max_parallel": 1.5}, "max_parallel: Input should be a valid integer"),
        ({"retries": -1}, "retries: Input should be greater than or equal to 0"),
        ({"retries": True}, "retries: Input should be a valid integer"),
        ({"timeout": 0}, "timeout: Input should be greater than 0"),
        ({"timeout": "30"}, "timeout: Input should be a valid number"),
        ({"backoff": -1}, "backoff: Input should be greater than or equal to 0"),
        ({"headers": ["a"]}, "headers is not a mapping"),
        ({"batchsize": 1}, "unknown key 'batchsize'; did you mean 'batch_size'?"),
    ],
)
def test_a_setting_that_cannot_be_served_is_refused(settings, expected):
    with pytest.raises(UserError) as error:
        load_reward({"type": "http", "url": "http://host/score"} | settings)
    assert expected in str(error.value)


def test_the_identity_changes_with_the_service_and_not_with_the_way_it_is_asked():
    def identity(**settings: Any) -> dict[str, Any]:
        return load_reward({"type": "http", "url": "http://host/score", **settings}).identity()

    plain = identity()
    assert plain["url"] == "http://host/score"
    assert plain == identity(batch_size=2, timeout=1, retries=0, max_parallel=3, token_env="KEY", backoff=2)
    changed = [identity(version=2), identity(url="http://host/other"), identity(headers={"X-Model": "b"})]
    assert all(plain != other for other in changed)


def test_read_scores_gives_floats():
    assert [type(score) for score in read_scores([1, 0.5, True, None], 4)] == [float, float, float, type(None)]


# What a failed run keeps


@pytest.fixture
def scoring(tmp_path, tiny_recipe, service) -> Callable[..., Run]:
    """`scoring(**settings)`: the score stage of a run of 30 rows whose reward is the service."""
    rows = [row | {"completion": f" {i} {row['completion']}"} for i, row in enumerate(scored_rows(30))]

    def start(**settings: Any) -> Run:
        spec = {"type": "http", "url": service.url, "name": "served", "retries": 1, "backoff": 0.01, **settings}
        policies = {"nll": {"objective": "nll", "rows": "all"}}
        run = open_run(make_recipe(tiny_recipe(tmp_path, rows, reward={"functions": [spec]}, policies=policies)))
        for do in (stage.read, stage.split, stage.tokens, score):
            do(run)
        return run

    return start


def scored(service: Service) -> list[str]:
    """The completions that the service has scored, in the order of its answers."""
    return [text for request in service.requests for text in request["completions"]]


@pytest.mark.parametrize("fault", [answer("gone", 400), answer("down", 503), answer([1.0]), late])
def test_after_a_failure_a_run_asks_only_for_what_has_no_score(fault, service, scoring):
    service.plan, service.then = [lengths] * 3, fault
    with pytest.raises(UserError, match="http reward"):
        scoring(batch_size=4, timeout=1)
    done = scored(service)[:12]  # three batches of four; the rest was asked for in vain
    service.requests.clear()
    service.then = lengths
    run = scoring(batch_size=4)
    again = scored(service)
    assert len(again) == 18 and not set(done) & set(again)
    rows = run.table.open("rows")
    assert [*done, *again] == rows["completion"][:]
    assert column(run.table.open("score-served"), "reward/served").tolist() == [len(t) for t in rows["completion"]]


def test_with_parallel_requests_no_more_than_what_was_asked_for_at_a_time_is_scored_twice(service, scoring):
    def fails_late(body: dict[str, Any]) -> tuple:
        return (400, {}, "gone") if any(" 17 " in text for text in body["completions"]) else lengths(body)

    service.then = fails_late
    with pytest.raises(UserError, match="status 400"):
        scoring(batch_size=4, max_parallel=2)
    service.requests.clear()
    service.then = lengths
    run = scoring(batch_size=4, max_parallel=2)
    texts = run.table.open("rows")["completion"][:]
    assert sorted(scored(service)) == sorted(texts[16:]), "two whole waves of eight were kept"
    assert column(run.table.open("score-served"), "reward/served").tolist() == [len(text) for text in texts]


def test_a_finished_score_is_not_asked_for_again_until_the_version_changes(service, scoring):
    scoring()
    service.requests.clear()
    scoring(batch_size=7)
    assert not service.requests
    scoring(version=2)
    assert len(scored(service)) == 30


def test_rows_that_the_service_has_no_score_for_have_no_reward(service, scoring):
    service.then = lambda body: (200, {}, [None if " 3 " in text else 1.5 for text in body["completions"]])
    reward = column(scoring().table.open("reward"), "reward")
    assert np.isnan(reward[3]) and np.nansum(np.isnan(reward)) == 1
