"""Secrets in values and texts: found before a file leaves the machine, and left out of every file that is written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

# {kind: pattern}. Digests (a commit, SHA-256) are hex as well, so keys of hex count only beside a word that says so.
_PATTERNS = {
    "a Hugging Face token": r"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{30,}",
    "an AWS access key": r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    "an AWS secret key": r"(?i:aws|secret)[\w\"' .-]{0,30}[:=][ \"']{0,3}[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])",
    "a Weights & Biases key": r"(?i:wandb|api[_-]?key)[\w\"' .-]{0,30}[:=][ \"']{0,3}(?:local-)?"
    r"[0-9a-f]{40}(?![0-9a-f])"
    r"|wandb_v\d_[A-Za-z0-9_]{20,}",
    "a GitHub token": r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "a GitLab token": r"(?<![A-Za-z0-9])glpat-[A-Za-z0-9_-]{20,}",
    "an API key": r"(?<![A-Za-z0-9])(?:sk-[A-Za-z0-9_-]{20,}|AIza[A-Za-z0-9_-]{35}|xox[abprs]-[A-Za-z0-9-]{10,})",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a JSON web token": r"(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+",
    "a password in a URL": r"[a-zA-Z][a-zA-Z0-9+.-]*://[^/\s:@\"']*:[^/\s@\"']+@",
    "a storage account key": r"(?:AccountKey|SharedAccessSignature)=[A-Za-z0-9+/=%&]{20,}",
}
EMAIL = r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}"
_FOUND = {kind: re.compile(pattern) for kind, pattern in _PATTERNS.items()}
_ADDRESS = re.compile(EMAIL)
# For Arrow, whose engine (RE2) looks neither ahead nor behind: it matches all that has a secret, and a little more.
RE2 = "|".join(re.sub(r"\(\?<?!\[[^\]]*\]\)", "", pattern) for pattern in _PATTERNS.values())
# Names of entries whose text is a secret, whatever it looks like; not `pad_token` and its kind.
_SECRET_NAME = re.compile(
    r"(?:^|[_.-])(?:(?:hub|hf|auth|access|api|bearer|session|refresh|huggingface)_?token|password|passwd|pwd|secret|"
    r"secret_?key|api_?key|access_?key|private_?key|credentials?)s?$|^(?:use_auth_)?token$",
    re.IGNORECASE,
)
# What others (transformers) write in the place of a secret.
_HIDDEN = re.compile(r"<[A-Z_]+>|\*+|\[.*hidden\]|")


def secret_in(text: str) -> str | None:
    """What secret a text holds, None if there is none.

    Example:
        >>> secret_in("hub_token: hf_" + "a" * 34)
        'a Hugging Face token'
        >>> secret_in("s3://me:word@host/log.parquet")
        'a password in a URL'
        >>> secret_in("revision: " + "0" * 40) is None  # a commit
        True
    """
    return next((kind for kind, pattern in _FOUND.items() if pattern.search(text)), None)


def secrets_in(text: str) -> Iterator[tuple[int, str]]:
    """(number of a line from 1, what it holds) for each line of a text with a secret or an e-mail address."""
    for number, line in enumerate(text.splitlines(), 1):
        if (kind := secret_in(line)) is not None:
            yield number, kind
        elif _ADDRESS.search(line):
            yield number, "an e-mail address"


def named_secret(name: str, value: Any) -> bool:
    """Whether an entry's name says that its text is a secret.

    Example:
        >>> named_secret("hub_token", "abc"), named_secret("pad_token", "[PAD]"), named_secret("hub_token", None)
        (True, False, False)
    """
    return isinstance(value, str) and _HIDDEN.fullmatch(value) is None and _SECRET_NAME.search(name) is not None


def without_secrets(values: Any) -> Any:
    """Plain values for a file: entries that are secrets are left out, and texts that hold one say so in its place.

    Example:
        >>> without_secrets({"hub_token": "x", "seed": 1, "path": ["ftp://me:word@host/a.csv"]})
        {'seed': 1, 'path': ['[a password in a URL, hidden]host/a.csv']}
    """
    if isinstance(values, dict):
        kept = {name: value for name, value in values.items() if not named_secret(str(name), value)}
        return {hide_secrets(k) if isinstance(k, str) else k: without_secrets(value) for k, value in kept.items()}
    if isinstance(values, list | tuple):
        return [without_secrets(value) for value in values]
    return hide_secrets(values) if isinstance(values, str) else values


def hide_secrets(text: str) -> str:
    """A text in which each secret is replaced by what it is.

    Example:
        >>> hide_secrets("cannot read hf_" + "a" * 34)
        'cannot read [a Hugging Face token, hidden]'
    """
    for kind, pattern in _FOUND.items():
        text = pattern.sub(f"[{kind}, hidden]", text)
    return text
