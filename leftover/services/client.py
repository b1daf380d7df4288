"""One request over HTTP, tried again after a passing fault."""

import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import requests
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from leftover.errors import UserError
from leftover.services.credentials import hide

log = logging.getLogger(__name__)

SHOWN = 200  # characters of an answer in an error
RETRIED = (429, *range(500, 600))
_LONGEST_BACKOFF = 120.0  # seconds; a service may ask for more by Retry-After


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
) -> requests.Response:
    """The last answer to a request that is tried again after lost connections, time-outs, and the statuses `RETRIED`.

    Args:
        payload: sent as JSON; None: nothing is.
        where: names the service in messages.
        remedy: what to do if no answer comes.
    """
    wait = patience.backoff
    retry = Retry(patience.retries, backoff_factor=wait, backoff_jitter=wait, backoff_max=_LONGEST_BACKOFF)
    while True:
        answer = fault = None
        try:
            response = session.request(
                method,
                url,
                json=payload,
                auth=key,
                timeout=patience.timeout,
                allow_redirects=False,  # a redirected POST becomes a GET
            )
            if response.status_code not in RETRIED or not retry.total:
                return response
            answer, shown = response.raw, f"status {response.status_code}"
        except requests.RequestException as error:
            cause = next(iter(error.args), None)
            fault, shown = error, hide(str(getattr(cause, "reason", error)), key.token if key else None)[:SHOWN]
            if not retry.total:
                tried = patience.retries + 1
                raise UserError(f"{where} {url}: no answer, tried {tried} times: {shown}. {remedy}") from error
        asked = answer and answer.headers.get("Retry-After")
        log.warning("%s: %s; trying again%s", where, shown, f" in {asked} s, as it asks" if asked else "")
        retry = retry.increment(method, url, answer, fault)
        try:
            retry.sleep(answer)
        except InvalidHeader:  # Retry-After is neither seconds nor a date
            retry.sleep()


def shown(response: requests.Response, token: str | None) -> str:
    """The beginning of an answer, for messages, without the key."""
    return repr(hide(response.content.decode("utf-8", "replace"), token)[:SHOWN])
