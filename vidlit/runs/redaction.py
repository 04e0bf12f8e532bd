"""Keeps keys and passwords out of everything that is written or shown."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

REDACTED = "<redacted>"

_SECRET_NAME = re.compile(
    r"(^|[_.\-])(api_?key|access_?key|private_?key|secret|tokens?|pass(word|wd|phrase)|credentials?|auth(orization)?)"
    r"($|[_.\-])",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"hf_[A-Za-z0-9]{16,}|wandb_v\d_\w{16,}|sk-[\w\-]{16,}|gh[opusr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}"
    r"|AKIA[A-Z0-9]{16}|eyJ[\w\-]{8,}\.[\w\-]{8,}\.[\w\-]*"
)
_PASSWORD_IN_URL = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_SHORTEST = 8
"""Characters of an environment variable's value that is looked for: shorter ones are words."""


def redact(value: Any) -> Any:
    """A copy of a config in which nothing looks like a key.

    Redacted are strings under names such as ``api_key``, ``token`` or ``password``, strings in the shape of a known
    service's keys, passwords within addresses, and the values of environment variables with such names.

    Args:
        value: nested mappings, lists and plain values.
    """
    return _redact(value, _environment_secrets())


def redact_text(text: str) -> str:
    """The same for free text, such as an error message."""
    return _redact_text(text, _environment_secrets())


def is_secret_name(name: str) -> bool:
    """Whether an option or a variable of this name holds something to keep to oneself."""
    return _SECRET_NAME.search(name) is not None


def _redact(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            key: REDACTED if isinstance(each, str) and each and is_secret_name(str(key)) else _redact(each, secrets)
            for key, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_redact(each, secrets) for each in value]
    return _redact_text(value, secrets) if isinstance(value, str) else value


def _redact_text(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    return _PASSWORD_IN_URL.sub(REDACTED, _SECRET_VALUE.sub(REDACTED, text))


def _environment_secrets() -> list[str]:
    found = {value for name, value in os.environ.items() if is_secret_name(name) and len(value) >= _SHORTEST}
    return sorted(found, key=len, reverse=True)
