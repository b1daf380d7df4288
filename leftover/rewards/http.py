"""A service that scores completions over HTTP."""

import json
import logging
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import requests
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs
from requests.adapters import HTTPAdapter
from urllib3.exceptions import MaxRetryError
from urllib3.util import Retry

from leftover.errors import UserError
from leftover.rewards.base import STRICT, Prompt
from leftover.rewards.credentials import check_headers, check_token_settings, check_url, hide, read_token
from leftover.store.manifest import digest

log = logging.getLogger(__name__)

_WHERE = "http reward"
_SHOWN = 200  # characters of an answer in an error
_LONGEST_BACKOFF = 120.0  # seconds; a service may ask for more by Retry-After
_RETRIED = (429, *range(500, 600))


@dataclass(config=STRICT)
class HttpReward:
    """Scores from a service: POST {"prompts": [...], "completions": [...]}, answered {"scores": [...]} or a bare list.

    Prompts are texts or message lists as the user wrote them. The answer holds one number per completion (true and
    false are 1 and 0) in the same order; null where the service has no score. Lost connections, time-outs and the
    statuses 429 and 5xx are tried again, with back-off or after the time that the service names. A run saves scores
    every `batch_size * max_parallel` rows, so that a failed one continues where it stopped.

    Args:
        url: of the service, without credentials.
        batch_size: completions per request.
        timeout: seconds to wait for a connection, and for the next part of an answer.
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
    timeout: float = Field(default=30.0, gt=0)
    retries: int = Field(default=5, ge=0)
    backoff: float = Field(default=1.0, ge=0)
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
        if "url" in settings:
            check_url(settings["url"], _WHERE)
        check_token_settings(settings.get("token_env"), settings.get("token_header", "Authorization"), _WHERE)
        settings["headers"] = check_headers(settings.get("headers") or {}, _WHERE)
        return ArgsKwargs(given.args, settings)

    def __post_init__(self) -> None:
        self._session = requests.Session()
        adapter = HTTPAdapter(pool_maxsize=self.max_parallel, max_retries=self._retry())
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        self._session.headers.update(self.headers)

    @property
    def batch_rows(self) -> int:
        """Rows between two saves of the score stage: as many as are asked for at a time."""
        return self.batch_size * self.max_parallel

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float | None]:
        starts = range(0, len(completions), self.batch_size)
        asked = [list(prompts[start : start + self.batch_size]) for start in starts]
        given = [list(completions[start : start + self.batch_size]) for start in starts]
        if self.max_parallel == 1:
            answers = [self._score(*batch) for batch in zip(asked, given, strict=True)]
        else:
            with ThreadPoolExecutor(self.max_parallel) as pool:
                answers = list(pool.map(self._score, asked, given))
        return [score for scores in answers for score in scores]

    def identity(self) -> dict[str, Any]:
        # A header may change what the service does; its digest is enough to tell.
        headers = digest(self.headers) if self.headers else None
        return {"type": "http", "url": self.url, "headers": headers, "version": self.version}

    def _retry(self) -> Retry:
        return _LoggedRetry(
            total=self.retries,
            status_forcelist=_RETRIED,
            allowed_methods=None,  # POST too: scoring twice does no harm
            backoff_factor=self.backoff,
            backoff_jitter=self.backoff,
            backoff_max=_LONGEST_BACKOFF,
            raise_on_status=False,
        )

    def _score(self, prompts: list[Prompt], completions: list[str]) -> list[float | None]:
        token = read_token(self.token_env, _WHERE)
        response = self._post({"prompts": prompts, "completions": completions}, token)
        status = response.status_code
        shown = f"it answered {hide(response.content.decode('utf-8', 'replace'), token)[:_SHOWN]!r}"
        if not 200 <= status < 300:
            hint = {301: _MOVED, 302: _MOVED, 307: _MOVED, 308: _MOVED, 401: _KEY, 403: _KEY}.get(status, "")
            tried = f", tried {self.retries + 1} times" if status in _RETRIED else ""
            raise UserError(f"{_WHERE} {self.url}: status {status}{tried}{hint}; {shown}")
        try:
            return read_scores(json.loads(response.content), len(completions))
        except (ValueError, RecursionError) as error:
            reason = error if type(error) is ValueError else "the answer is not JSON"
            raise UserError(f"{_WHERE} {self.url}: {hide(str(reason), token)}; {shown}") from error

    def _post(self, payload: dict[str, Any], token: str | None) -> requests.Response:
        """The whole answer. The session's retries end when the headers have come; those of the body are made here."""

        def authorise(request: requests.PreparedRequest) -> requests.PreparedRequest:
            scheme = "Bearer " if self.token_header == "Authorization" else ""
            request.headers[self.token_header] = f"{scheme}{token}"
            return request

        retry = self._retry()
        try:
            while True:
                response = self._session.post(
                    self.url,
                    json=payload,
                    auth=authorise if token else None,
                    timeout=self.timeout,
                    allow_redirects=False,  # a redirected POST becomes a GET
                    stream=True,
                )
                try:
                    _ = response.content
                    return response
                except requests.RequestException as error:
                    retry = retry.increment("POST", self.url, error=error)
                    retry.sleep()
        except (requests.RequestException, MaxRetryError) as error:
            cause = error if isinstance(error, MaxRetryError) else next(iter(error.args), None)
            reason = hide(str(getattr(cause, "reason", error)), token)[:_SHOWN]
            raise UserError(
                f"{_WHERE} {self.url}: no answer, tried {self.retries + 1} times: {reason}. Start the service and run "
                "again (a run goes on where it stopped), or raise timeout or retries"
            ) from error


_MOVED = " (a redirect: give the address it leads to)"
_KEY = " (the key comes from the variable that token_env names)"


class _LoggedRetry(Retry):
    def increment(self, *args: Any, **kwargs: Any) -> Self:
        left = super().increment(*args, **kwargs)
        response = kwargs.get("response")
        if response is not None:  # urllib3 logs the other causes itself
            wait = response.headers.get("Retry-After")
            asked = f" in {wait} s, as it asks" if wait else ""
            log.warning("http reward: status %d; trying again%s", response.status, asked)
        return left


def read_scores(answer: Any, count: int) -> list[float | None]:
    """The scores of a service's answer. Raises ValueError with the reason where it holds none."""
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
