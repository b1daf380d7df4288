"""A service that scores completions over HTTP."""

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import requests
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs
from requests.adapters import HTTPAdapter

from leftover.errors import UserError
from leftover.rewards.base import STRICT, Prompt
from leftover.services.client import RETRIED, Answer, Key, Patience, ask, shown
from leftover.services.credentials import check_headers, check_token_settings, check_url, hide, read_token
from leftover.store.sealed import digest

_WHERE = "http reward"
_HINTS = dict.fromkeys((301, 302, 307, 308), " (a redirect: give the address it leads to)") | dict.fromkeys(
    (401, 403), " (the key comes from the variable that token_env names)"
)


@dataclass(config=STRICT)
class HttpReward:
    """Scores from a service: POST {"prompts": [...], "completions": [...]}, answered {"scores": [...]} or a bare list.

    Prompts are texts or message lists as the user wrote them. The answer holds one number per completion (true and
    false are 1 and 0) in the same order; null if the service has no score. Lost connections, time-outs and the
    statuses 429 and 5xx are tried again, with back-off or after the time that the service names. A run saves scores
    every `batch_size * max_parallel` rows, so that a failed one continues where it stopped.

    Args:
        url: of the service, without credentials.
        batch_size: completions per request.
        timeout: seconds to wait for a connection, and for the whole of an answer.
        retries: how often a request is tried again; 0 for never.
        backoff: seconds before the third try, doubled for each that follows (at most two minutes), plus a random part
            of up to as many; the second try is immediate.
        headers: further headers; not for keys, since the recipe is kept with the run.
        token_env: the environment variable that holds the key. It is read when it is needed and written nowhere.
        token_header: the header of the key; `Authorization` holds `Bearer <key>`, any other the key alone.
        max_parallel: requests at a time.
        version: change it when the service changes, so that its old scores are not used any more.
    """

    url: str
    batch_size: int = Field(default=64, ge=1)
    timeout: float = Field(default=30.0, gt=0, le=86_400)
    retries: int = Field(default=5, ge=0, le=1000)
    backoff: float = Field(default=1.0, ge=0, le=86_400)
    headers: dict[str, str] = Field(default_factory=dict)
    token_env: str | None = None
    token_header: str = "Authorization"
    max_parallel: int = Field(default=1, ge=1)
    version: object = 1

    @model_validator(mode="before")
    @classmethod
    def _holds_no_credentials(cls, given: ArgsKwargs) -> ArgsKwargs:
        """Checked before the types of settings, whose errors show what was given."""
        settings = dict(given.kwargs or {})
        if given.args or "url" in settings:
            check_url(given.args[0] if given.args else settings["url"], _WHERE)
        check_token_settings(settings.get("token_env"), settings.get("token_header", "Authorization"), _WHERE)
        settings["headers"] = check_headers(settings.get("headers") or {}, _WHERE)
        return ArgsKwargs(given.args, settings)

    def __post_init__(self) -> None:
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=self.max_parallel))
        self._session.headers.update(self.headers)

    @property
    def batch_rows(self) -> int:
        """Rows between two saves of the score stage: as many as are asked for at a time."""
        return self.batch_size * self.max_parallel

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float | None]:
        starts = range(0, len(completions), self.batch_size)
        asked = [list(prompts[start : start + self.batch_size]) for start in starts]
        given = [list(completions[start : start + self.batch_size]) for start in starts]
        if self.max_parallel == 1:  # no thread, which Ctrl-C would wait for
            return list(chain.from_iterable(map(self._score, asked, given)))
        with ThreadPoolExecutor(self.max_parallel) as pool:
            return list(chain.from_iterable(pool.map(self._score, asked, given)))

    def identity(self) -> dict[str, Any]:
        # A header may change what the service does; its digest is enough to tell.
        headers = digest(self.headers) if self.headers else None
        return {"type": "http", "url": self.url, "headers": headers, "version": self.version}

    def _score(self, prompts: list[Prompt], completions: list[str]) -> list[float | None]:
        token = read_token(self.token_env, _WHERE)
        response = self._post({"prompts": prompts, "completions": completions}, token)
        status = response.status_code
        answered = f"it answered {shown(response, token)}"
        if not 200 <= status < 300:
            tried = f", tried {self.retries + 1} times" if status in RETRIED else ""
            raise UserError(f"{_WHERE} {self.url}: status {status}{tried}{_HINTS.get(status, '')}; {answered}")
        try:
            return read_scores(json.loads(response.content), len(completions))
        except (ValueError, RecursionError) as error:
            reason = error if type(error) is ValueError else "the answer is not JSON"
            raise UserError(f"{_WHERE} {self.url}: {hide(str(reason), token)}; {answered}") from error

    def _post(self, payload: dict[str, Any], token: str | None) -> Answer:
        return ask(
            self._session,
            "POST",
            self.url,
            payload,
            where=_WHERE,
            patience=Patience(self.timeout, self.retries, self.backoff),
            key=Key(token, self.token_header) if token else None,
            remedy="Start the service and run again (a run continues where it stopped), or raise timeout or retries",
        )


def read_scores(answer: Any, count: int) -> list[float | None]:
    """The scores of a service's answer. Raises ValueError with the reason if it holds none."""
    scores = answer.get("scores") if isinstance(answer, dict) else answer
    if not isinstance(scores, list):
        raise ValueError('the answer is neither {"scores": [...]} nor a list')
    if len(scores) != count:
        raise ValueError(f"{len(scores)} scores for {count} completions")
    for score in scores:
        # The integers of JSON have no bound.
        finite = isinstance(score, (bool, int, float)) and abs(score) <= sys.float_info.max
        if score is not None and not finite:
            raise ValueError(f"a score is {score!r:.40}, neither a finite number nor null")
    return [None if score is None else float(score) for score in scores]
