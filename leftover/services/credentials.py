"""Addresses, headers and keys of services: what a recipe may hold, and what comes from the environment."""

import os
import re
from urllib.parse import parse_qsl, urlsplit

from leftover.errors import UserError

_SECRET = re.compile(r"auth|cookie|secret|password|token|api.?key|^key$", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_url(url: object, where: str) -> None:
    """Raises UserError, naming `where`, for anything but an http address, and for credentials, which are not shown."""
    try:
        parts = urlsplit(str(url))
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UserError(f"{where}: url is not of the form http://host:port/path")
    if parts.username or parts.password or any(_SECRET.search(name) for name, _ in parse_qsl(parts.query)):
        raise UserError(
            f"{where}: the url of {parts.hostname} holds credentials, which would be kept with the run: put the key "
            "into an environment variable, and name it in token_env"
        )


def check_headers(headers: object, where: str) -> dict[str, str]:
    """The headers as texts. Raises UserError for one that looks like a key or cannot be sent."""
    if not isinstance(headers, dict):
        raise UserError(f"{where}: headers is not a mapping of names to values")
    checked = {str(name): str(value) for name, value in headers.items()}
    for name, value in checked.items():
        if _SECRET.search(name):
            raise UserError(
                f"{where}: the header '{name}' looks like a key, which would be kept with the run: put it into an "
                "environment variable, and name it in token_env and the header in token_header"
            )
        if not _sendable(name) or (value and not _sendable(value)):
            raise UserError(f"{where}: the header '{name}' contains characters that a header cannot")
    return checked


def check_token_settings(token_env: object, token_header: object, where: str) -> None:
    """Raises UserError for anything but names of a variable and a header; a key in their place is not shown."""
    if token_env is not None and not (isinstance(token_env, str) and _VARIABLE.fullmatch(token_env)):
        raise UserError(f"{where}: token_env takes the name of an environment variable that holds the key")
    if not isinstance(token_header, str) or not _sendable(token_header) or " " in token_header:
        raise UserError(f"{where}: token_header takes the name of a header")


def read_token(token_env: str | None, where: str) -> str | None:
    """The key that the environment variable holds. Raises UserError if it is not set."""
    if token_env is None:
        return None
    token = os.environ.get(token_env, "").strip()
    if not token:
        raise UserError(f"{where}: the environment variable {token_env} (token_env) is not set")
    if not _sendable(token):
        raise UserError(f"{where}: the variable {token_env} (token_env) contains characters that a header cannot")
    return token


def hide(text: str, token: str | None) -> str:
    """The text without the key, however a service has escaped it: backslashes, \\uXXXX or %XX, also twice."""
    if not token:
        return text
    forms = (rf"(?:\\*{re.escape(c)}|(?i:\\+u{ord(c):04x}|%(?:25)*{ord(c):02x}))" for c in token)
    return re.sub("".join(forms), "***", text)


def _sendable(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable()
