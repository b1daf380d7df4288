"""One request over HTTP, tried again after a passing fault."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import requests
from urllib3.exceptions import HTTPError, InvalidHeader
from urllib3.util import Retry

from leftover.errors import UserError
from leftover.services.credentials import hide

log = logging.getLogger(__name__)

SHOWN = 200  # characters of an answer in an error
RETRIED = (429, *range(500, 600))
_LONGEST_WAIT = 120.0  # seconds before a request is tried again, also where a service asks for more by Retry-After
LONGEST_ANSWER = 64 * 2**20  # bytes, as they are unpacked


class Answer(NamedTuple):
    """What a service has answered, read whole."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes


class Patience(NamedTuple):
    """How long and how often a request is tried; the fields of `HttpReward`."""

    timeout: float
    retries: int
    backoff: float


@dataclass(frozen=True)
class Key:
    """The key of a service, and the header that it stands in: `Authorization` holds `Bearer <key>`."""

    token: str
    header: str = "Authorization"

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """As requests' `auth`: given so, the key of a .netrc file does not take its place."""
        scheme = "Bearer " if self.header == "Authorization" else ""
        request.headers[self.header] = f"{scheme}{self.token}"
        return request


def ask(
    session: requests.Session,
    method: str,
    url: str,
    payload: Any,
    *,
    where: str,
    patience: Patience,
    key: Key | None,
    remedy: str,
) -> Answer:
    """The last answer to a request that is tried again after lost connections, time-outs, and the statuses `RETRIED`.

    Raises UserError if none comes, or one of more than 64 MiB.

    Args:
        payload: sent as JSON; None: nothing is.
        where: names the service in messages.
        remedy: what to do if no answer comes.
    """
    wait = patience.backoff
    retry = Retry(patience.retries, backoff_factor=wait, backoff_jitter=wait, backoff_max=_LONGEST_WAIT)
    while True:
        answer = fault = None
        try:
            until = time.monotonic() + patience.timeout
            with session.request(
                method,
                url,
                json=payload,
                auth=key,
                timeout=patience.timeout,
                allow_redirects=False,  # a redirected POST becomes a GET
                stream=True,
            ) as response:
                found = Answer(response.status_code, response.headers, _whole(response, until, f"{where} {url}"))
            if found.status_code not in RETRIED or not retry.total:
                return found
            answer, shown = response.raw, f"status {found.status_code}"
        except requests.RequestException as error:
            cause = next(iter(error.args), None)
            fault, shown = error, hide(str(getattr(cause, "reason", error)), key.token if key else None)[:SHOWN]
            if not retry.total:
                tried = patience.retries + 1
                raise UserError(f"{where} {url}: no answer, tried {tried} times: {shown}. {remedy}") from error
        retry = retry.increment(method, url, answer, fault)
        try:
            asked = retry.get_retry_after(answer) if answer else None
        except InvalidHeader:  # neither seconds nor a date
            asked = None
        wait = retry.get_backoff_time() if asked is None else min(asked, _LONGEST_WAIT)
        meant = "" if asked is None else "as it asks" if wait == asked else f"where it asks for {asked:.0f}"
        reason = f" in {wait:.0f} s, {meant}" if meant else ""
        log.warning("%s: %s; trying again%s", where, shown, reason)
        time.sleep(wait)


def _whole(response: requests.Response, until: float, where: str) -> bytes:
    """The body of an answer, which must be here by a time of the monotonic clock."""
    parts, size = list[bytes](), 0
    try:
        for part in iter(lambda: response.raw.read1(2**16, decode_content=True), b""):  # as soon as there is some
            size += len(part)
            parts.append(part)
            if size > LONGEST_ANSWER or time.monotonic() > until:
                break
    except HTTPError as error:
        raise requests.ConnectionError(error) from error
    if size > LONGEST_ANSWER:
        raise UserError(f"{where}: an answer of more than {LONGEST_ANSWER // 2**20} MiB: a wrong address?")
    if time.monotonic() > until:
        raise requests.ReadTimeout("the answer had begun, and was not whole in time")
    return b"".join(parts)


def shown(response: Answer, token: str | None) -> str:
    """The beginning of an answer, for messages, without the key."""
    return repr(hide(response.content.decode("utf-8", "replace"), token)[:SHOWN])
