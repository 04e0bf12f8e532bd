"""Keeps keys and passwords out of everything that is written or shown.

A secret is known in three ways: by its shape (detect-secrets keeps a list of services' keys), by the name of the option
or variable that holds it, and by being the value of such a variable of the environment.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import pairwise
from typing import Any
from urllib.parse import quote

REDACTED = "<redacted>"

_PASSWORDS = {"password", "passwords", "passwd", "passphrase", "pwd", "secret", "secrets"}
"""Words of a name that are secret whatever stands there, numbers as well."""
_WORDS = _PASSWORDS | {"credential", "credentials", "auth", "authorization", "webhook", "apikey", "apikeys", "bearer"}
_LAST_WORDS = {"token", "tokens", "pat", "sk", "pass"}
"""Secret where they end a name; ``pat``, ``sk`` and ``pass`` only where another word stands before them."""
_KEYS = {
    *("api", "access", "private", "secret", "encryption", "signing", "ssh", "account", "auth", "master", "deploy"),
    *(
        "service",
        "client",
        "consumer",
        "app",
        "subscription",
        "storage",
        "shared",
        "hmac",
        "wandb",
        "stripe",
        "license",
    ),
}
"""What makes a ``key`` a secret one; others are keys of tables."""
_COUNTS = {"num", "max", "min", "n", "total", "per", "mean", "count"}
_PLACES = {"file", "path", "dir", "folder", "sock", "socket", "type", "name", "names", "length", "count", "limit"}
"""Last words of what is said *about* a secret."""
_IN_QUERIES = {"key", "sig", "signature", "code"}
"""Names that are secret in the query of an address only, beside the others."""
_ORDINARY_VARIABLES = {"PWD", "OLDPWD"}
_SPLIT = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_OF_USER = re.compile(r"(?<=://)(?!git@)[^/\s@?#]+(?=@)")
_ASSIGNED = re.compile(
    r"(?P<before>[?&;#])?(?P<name>[A-Za-z][\w.\-]*)(?P<sign>=|[\"']\s*:\s*[\"'])(?P<value>[^\s\"'&;,<>]+)"
)
_OPTION = re.compile(r"(?P<name>--[\w.\-]+)(?P<sign> +[\"']?)(?P<value>[^\s\"'-][^\s\"']*)")
_LINE = re.compile(r"^(?P<name>[ \-]*[\w.\-]+)(?P<sign>: +)(?P<value>\S.*)$", re.MULTILINE)
_BEARER = re.compile(r"(?<=\bBearer )\S{8,}|(?<=\bBasic )[A-Za-z0-9+/=]{8,}")
_SHAPES = (
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}",
    r"\bwandb_v\d_\w{16,}",
    r"\bsk-[\w\-]{16,}",
    r"\b[rsp]k_(?:live|test)_\w{10,}|\bwhsec_\w{16,}",
    r"\bgh[opusr]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{16,}",
    r"\bAIza[\w\-]{30,}|\bya29\.[\w\-]{20,}",
    r"\bxox[a-z]-[\w\-]{10,}|\bxapp-[\w\-]{10,}",
    r"\bnpm_[A-Za-z0-9]{30,}|\bpypi-[\w\-]{30,}|\bdckr_pat_[\w\-]{16,}|\bdop_v1_[a-f0-9]{32,}|\bdapi[a-f0-9]{32}",
    r"\bAKC[A-Za-z0-9]{10,}",
    r"https://(?:discord(?:app)?\.com/api/webhooks|hooks\.slack\.com)/[\w/\-]+",
)
"""Keys that detect-secrets lacks, or knows in one length only."""
_LEFT_OUT = {
    "High Entropy",
    "IPv4",
    "ip",
    "Keyword",
    "Cloudant",
    "SoftLayer",
    "IBM",
    "Basic Auth",
    "Private Key",
    "Artifactory",
}
"""Of detect-secrets' lists: hashes and addresses are no secrets; names, users and whole PEM blocks are told here."""
_SHORTEST = 8
"""Characters of an environment variable's value that is looked for: shorter ones are words."""


def redact(value: Any) -> Any:
    """A copy of a config in which nothing looks like a key.

    Redacted are values under names such as ``api_key``, ``token`` or ``password``, strings in the shape of a known
    service's keys, users and passwords within addresses, and the values of environment variables with such names.

    Args:
        value: nested mappings, lists and plain values.
    """
    return _redact(value, _environment_secrets())


def redact_text(text: str) -> str:
    """The same for free text, such as an error message or a command line."""
    return _redact_text(text, _environment_secrets())


def is_secret_name(name: str) -> bool:
    """Whether an option or a variable of this name holds something to keep to oneself.

    Args:
        name: as it is written: ``HF_TOKEN``, ``accessKeyId``, ``trainer.logger.api-key``.
    """
    words = _words(name)
    if not words or words[-1] in _PLACES or words[0] in _COUNTS:
        return False
    if any(word in _WORDS or word.endswith(("password", "passwd", "apikey")) for word in words):
        return True
    if words[-1] in ("token", "tokens") or (len(words) > 1 and words[-1] in _LAST_WORDS):
        return True
    return any(first in _KEYS and second in ("key", "keys") for first, second in pairwise(words))


def _words(name: str) -> list[str]:
    return [word.lower() for word in _SPLIT.findall(name.rpartition(".")[2])]


def _redact(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            _redact(key, secrets): _hidden(each, numbers_too=_is_password(str(key)))
            if is_secret_name(str(key))
            else _redact(each, secrets)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_redact(each, secrets) for each in value]
    return _redact_text(value, secrets) if isinstance(value, str) else value


def _hidden(value: Any, numbers_too: bool) -> Any:
    """What stands under a secret name: its shape, and nothing of it."""
    if isinstance(value, Mapping):
        return {key: _hidden(each, numbers_too) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(each, numbers_too) for each in value]
    is_secret = (isinstance(value, str) and value) or (
        numbers_too and isinstance(value, int | float) and not isinstance(value, bool)
    )
    return REDACTED if is_secret else value


def _is_password(name: str) -> bool:
    return any(word in _PASSWORDS or word.endswith("password") for word in _words(name))


def _redact_text(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    for shape in _shapes():
        text = shape.sub(REDACTED, text)
    text = _BEARER.sub(REDACTED, _OF_USER.sub(REDACTED, text))
    for assignment in (_ASSIGNED, _OPTION, _LINE):
        text = assignment.sub(_without_value, text)
    return text


def _without_value(found: re.Match[str]) -> str:
    groups = found.groupdict()
    before, name, value = groups.get("before") or "", groups["name"], groups["value"]
    in_query = bool(before) and name.lower() in _IN_QUERIES
    is_count = value.replace(".", "", 1).isdigit() and not _is_password(name)
    if is_count or value.startswith(REDACTED) or value.lower() in ("null", "none", "true", "false"):
        return found[0]
    return f"{before}{name}{groups['sign']}{REDACTED}" if in_query or is_secret_name(name) else found[0]


@cache
def _shapes() -> list[re.Pattern[str]]:
    """What known services' keys look like; each goes on to the end of the word."""
    shown = warnings.showwarning
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class  # takes half a second

    logging.captureWarnings(False)  # which it has set: the run's warnings would go to a log that nobody reads
    warnings.showwarning = shown
    shapes = [re.compile(shape) for shape in _SHAPES]
    for name, detector in get_mapping_from_secret_type_to_class().items():
        if not any(each in name for each in _LEFT_OUT):
            known = getattr(detector, "denylist", ())
            shapes += [re.compile(f"(?:{each.pattern})[\\w\\-]*", each.flags) for each in known]
    return shapes


def _environment_secrets() -> list[str]:
    found = {
        value
        for name, value in os.environ.items()
        if name not in _ORDINARY_VARIABLES and is_secret_name(name) and len(value) >= _SHORTEST
    }
    return sorted(found | {quote(value, safe="") for value in found}, key=len, reverse=True)
