"""A service that scores completions over HTTP."""

import json
import logging
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from leftover.errors import UserError
from leftover.rewards.credentials import check_headers, check_token_settings, check_url, hide, read_token
from leftover.store.manifest import digest

log = logging.getLogger(__name__)

_WHERE = "http reward"
_SHOWN = 200  # characters of an answer in an error
_LONGEST_BACKOFF = 120.0  # seconds; a service may ask for more by Retry-After
_RETRIED = (429, *range(500, 600))


class HttpReward:
    """Scores from a service: POST {"prompts": [...], "completions": [...]}, answered {"scores": [...]} or a bare list.

    Prompts are texts or message lists as the user wrote them. The answer holds one number a completion (true and false
    are 1 and 0) in the same order; null where the service has no score. Lost connections, time-outs and the statuses
    429 and 5xx are tried again, with back-off or after the time that the service names. A run saves scores every
    `batch_size * max_parallel` rows, so that one that failed goes on where it stopped.

    Args:
        url: of the service, without credentials.
        batch_size: completions a request.
        timeout: seconds to wait for a connection, and for the next part of an answer.
        retries: how often a request is tried again; 0 for never.
        backoff: seconds before the third try, doubled for each that follows (at most two minutes), and by chance up to
            as many more; the second try is at once.
        headers: further headers; not for keys, since the recipe is kept with the run.
        token_env: the environment variable that holds the key. It is read when it is needed and written nowhere.
        token_header: the header of the key; `Authorization` says `Bearer <key>`, any other the key alone.
        max_parallel: requests at a time.
        version: to change where the service changes, so that its old scores are not used any more.
    """

    def __init__(
        self,
        url: str,
        batch_size: int = 64,
        timeout: float = 30.0,
        retries: int = 5,
        backoff: float = 1.0,
        headers: dict[str, Any] | None = None,
        token_env: str | None = None,
        token_header: str = "Authorization",
        max_parallel: int = 1,
        version: str | int = 1,
    ):
        check_url(url, _WHERE)
        check_token_settings(token_env, token_header, _WHERE)
        _check_count("batch_size", batch_size, 1)
        _check_count("max_parallel", max_parallel, 1)
        _check_count("retries", retries, 0)
        _check_seconds("timeout", timeout, above_zero=True)
        _check_seconds("backoff", backoff)
        self.url, self.batch_size, self.timeout, self.retries = url, batch_size, float(timeout), retries
        self.backoff, self.max_parallel, self.version = float(backoff), max_parallel, version
        self.headers = check_headers(headers or {}, _WHERE)
        self.token_env, self.token_header = token_env, token_header
        self._session: Any = None

    @property
    def batch_rows(self) -> int:
        """Rows between two saves of the score stage: what is asked for at a time."""
        return self.batch_size * self.max_parallel

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        self._session = self._session or self._open()
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
        # A header may choose what the service does, and says more than a key needs: its digest tells it apart.
        headers = digest(self.headers) if self.headers else None
        return {"type": "http", "url": self.url, "headers": headers, "version": self.version}

    def _open(self) -> Any:
        import requests
        from requests.adapters import HTTPAdapter

        session = requests.Session()
        adapter = HTTPAdapter(pool_maxsize=self.max_parallel, max_retries=self._retry())
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        session.headers.update(self.headers)
        return session

    def _retry(self) -> Any:
        from urllib3.util import Retry

        class SaidRetry(Retry):
            def increment(self, *args: Any, **kwargs: Any) -> Any:
                left = super().increment(*args, **kwargs)
                response = kwargs.get("response")
                if response is not None:  # urllib3 says itself what else it tries again
                    wait = response.headers.get("Retry-After")
                    asked = f" in {wait} s, as it asks" if wait else ""
                    log.warning("http reward: status %d; trying again%s", response.status, asked)
                return left

        return SaidRetry(
            total=self.retries,
            status_forcelist=_RETRIED,
            allowed_methods=None,  # POST too: to score twice does no harm
            backoff_factor=self.backoff,
            backoff_jitter=self.backoff,
            backoff_max=_LONGEST_BACKOFF,
            raise_on_status=False,
        )

    def _score(self, prompts: list[Any], completions: list[str]) -> list[float | None]:
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

    def _post(self, payload: dict[str, Any], token: str | None) -> Any:
        """The whole answer. The session's retries end where the headers have come; those of the body are made here."""
        import requests
        from urllib3.exceptions import MaxRetryError

        def authorise(request: Any) -> Any:
            request.headers[self.token_header] = f"Bearer {token}" if self.token_header == "Authorization" else token
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


def read_scores(answer: Any, count: int) -> list[float | None]:
    """The scores of a service's answer. Raises ValueError that says what is wrong with it."""
    scores = answer.get("scores") if isinstance(answer, dict) else answer
    if not isinstance(scores, list):
        raise ValueError('the answer is neither {"scores": [...]} nor a list')
    if len(scores) != count:
        raise ValueError(f"{len(scores)} scores for {count} completions")
    for score in scores:
        if score is not None and not isinstance(score, (bool, int, float)):
            raise ValueError(f"a score is {score!r:.40}, neither a number nor null")
        if score is not None and not abs(score) <= _LARGEST:
            raise ValueError(f"a score is {score!r:.40}, not a finite number")
    return [None if score is None else float(score) for score in scores]


_LARGEST = sys.float_info.max  # the integers of JSON have no bound


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{_WHERE}: {name} is {value!r}, not a whole number from {least}")


def _check_seconds(name: str, value: Any, above_zero: bool = False) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
    if not number or (above_zero and value == 0):
        raise UserError(f"{_WHERE}: {name} is {value!r}, not a number of seconds")
