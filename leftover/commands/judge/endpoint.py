"""A language model behind an OpenAI-compatible address, asked one question at a time from many threads."""

import math
import os
import re
import threading
import time
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from leftover.errors import UserError
from leftover.recipe.files import set_key
from leftover.services.credentials import check_token_settings, check_url, hide, read_token
from leftover.store.sealed import digest

if TYPE_CHECKING:
    import httpx

_SHOWN = 300  # characters of an answer in an error
_RESERVED = ("model", "messages", "stream", "n", "extra_headers")
_SECRET = re.compile(r"api.?key|auth|secret|password", re.IGNORECASE)
_DEFAULT_KEY = "OPENAI_API_KEY"
_HOSTED = "https://api.openai.com/v1"
_HOPELESS = (401, 403, 404)  # every question would fail alike
_OF_QUESTION = (400, 413, 422)  # too long, or refused for what it holds
_KEY = " (the key comes from the variable that --token-env names)"
_HINTS = {401: _KEY, 403: _KEY, 404: " (is the model served there, and does the address end in /v1?)"}
_TRIES = "x-stainless-retry-count"  # the client's own header: how often a request was repeated


class AskError(Exception):
    """A question got no answer, or one of HTTP status `status`.

    `hopeless`: other questions would get none either. `of_question`: the question itself may be at fault.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.hopeless, self.of_question = status in _HOPELESS, status in _OF_QUESTION


@dataclass(frozen=True)
class JudgeSettings:
    """Which model is asked, and how. A stored verdict depends on model, address and request alone.

    Raises UserError for an address with credentials, or a request field that is reserved or looks like a key.
    """

    model: str
    base_url: str | None = None  # default: the variable OPENAI_BASE_URL, or the hosted service
    request: dict[str, Any] = field(default_factory=lambda: {"temperature": 0})  # further fields; None omits one
    token_env: str | None = None  # default without a base_url: OPENAI_API_KEY
    timeout: float = 60.0  # seconds
    retries: int = 5
    parallel: int = 8
    requests_per_minute: float | None = None

    def __post_init__(self) -> None:
        check_url(self.url, "judge")
        check_token_settings(self.token_env, "Authorization", "judge")
        for name in self.request:
            if name in _RESERVED or _SECRET.search(name):
                raise UserError(f"--request {name}: this field cannot be set; keys come from --token-env")

    @property
    def url(self) -> str:
        return (self.base_url or os.environ.get("OPENAI_BASE_URL") or _HOSTED).rstrip("/")

    def token(self) -> str | None:
        """The key. OPENAI_API_KEY goes only to the environment's own address, unless token_env names it."""
        name = self.token_env
        if name is None and self.base_url is None and os.environ.get(_DEFAULT_KEY):
            name = _DEFAULT_KEY
        if name is None and self.url == _HOSTED:
            raise UserError(f"judge: no key for {self.url}: set {_DEFAULT_KEY}, or give --token-env or --base-url")
        return read_token(name, "judge")

    def fields(self) -> dict[str, Any]:
        """The fields of a request beside the model and the message."""
        return {name: value for name, value in self.request.items() if value is not None}

    def key(self, message: str) -> str:
        """The key of a question in the store: a digest of the whole request and the address."""
        return digest({"url": self.url, "model": self.model, "fields": self.fields(), "message": message})


def read_settings(options: dict[str, Any]) -> JudgeSettings | None:
    """Take the judge out of the command's options, `fields` as `key=value` of the request; None without a model."""
    given = {f.name: options.pop(f.name) for f in fields(JudgeSettings) if f.name in options}
    request: dict[str, Any] = {"temperature": 0}
    for text in options.pop("fields"):
        if "=" not in text:
            raise UserError(f"--request takes key=value, got '{text}'")
        set_key(request, text)
    return None if given["model"] is None else JudgeSettings(request=request, **given)


@dataclass(frozen=True)
class Answer:
    """What a model wrote, why it ended, and the tokens of both (None if the service does not count them)."""

    text: str
    model: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None


class Endpoint:
    """Asks the model of `settings`; `retried` counts repeated requests. Threads may share it."""

    def __init__(self, settings: JudgeSettings, stop: threading.Event):
        try:
            import openai
        except ImportError as error:
            raise UserError("a judge needs the package openai: pip install 'leftover[judge]'") from error
        self.settings, self.retried, self._token = settings, 0, settings.token()
        self._stop, self._lock, self._next_turn = stop, threading.Lock(), 0.0
        self._client = openai.OpenAI(
            api_key=self._token or "none",  # the client insists on one
            base_url=settings.url,
            timeout=settings.timeout,
            max_retries=settings.retries,
            http_client=openai.DefaultHttpxClient(event_hooks={"request": [self._before_request]}),
        )

    def close(self) -> None:
        self._client.close()

    def ask(self, message: str) -> Answer:
        """The model's answer. Raises AskError if there is none; nothing raised or returned holds the key."""
        import openai

        try:
            response = self._client.chat.completions.create(
                model=self.settings.model,
                messages=[{"role": "user", "content": message}],
                extra_body=self.settings.fields(),
            )
            return self._read(response)
        except openai.APIStatusError as error:
            status = error.status_code
            said = f"status {status}{_tried(error.request)}{_HINTS.get(status, '')}; it answered {error.response.text}"
            raise AskError(self._shown(said), status) from None  # the error's own text may hold the key
        except openai.APIConnectionError as error:
            reason = str(error.__cause__ or error) or type(error.__cause__).__name__
            raise AskError(self._shown(f"no answer{_tried(error.request)}: {error} {reason}")) from None
        except (openai.OpenAIError, ValueError, RecursionError) as error:
            raise AskError(self._shown(f"the answer is not that of a chat completion: {error}")) from None

    def _before_request(self, request: "httpx.Request") -> None:
        """Wait for the turn of a request, or of the client's own retry: both are spaced evenly over the minute."""
        import openai

        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next_turn)
            self._next_turn = turn + 60.0 / (self.settings.requests_per_minute or math.inf)
            self.retried += request.headers.get(_TRIES, "0") != "0"
        if self._stop.wait(turn - now):
            raise openai.OpenAIError("stopped")

    def _read(self, response: object) -> Answer:
        """Raises ValueError if there is no message; a message without text is an answer."""
        choices = getattr(response, "choices", None)
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = getattr(choice, "message", None)
        if message is None:
            raise ValueError(str(response))
        text = next((t for t in (message.content, getattr(message, "refusal", None)) if isinstance(t, str)), "")
        usage = getattr(response, "usage", None)
        return Answer(
            text=hide(text, self._token),
            model=hide(str(getattr(response, "model", "") or ""), self._token),
            finish_reason=hide(str(getattr(choice, "finish_reason", "") or ""), self._token),
            prompt_tokens=_count(usage, "prompt_tokens"),
            completion_tokens=_count(usage, "completion_tokens"),
        )

    def _shown(self, text: str) -> str:
        text = " ".join(hide(text, self._token).split())
        return text if len(text) <= _SHOWN else text[:_SHOWN] + " …"


def _tried(request: "httpx.Request") -> str:
    again = request.headers.get(_TRIES, "0")
    return f", tried {int(again) + 1} times" if again.isdecimal() and again != "0" else ""


def _count(usage: object, name: str) -> int | None:
    value = getattr(usage, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
