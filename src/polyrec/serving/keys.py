"""Bearer keys with scopes; a file holds their hashes."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path

SCOPES = ("read", "events", "admin")


@dataclass(frozen=True)
class Keys:
    """Who may do what.

    Args:
        scopes: {SHA-256 of a key: its scopes}; None: everybody may do everything.

    Example:
        >>> keys = Keys({hashed("secret"): frozenset({"read"})})
        >>> keys.allows("secret", "read"), keys.allows("secret", "admin"), keys.allows("guess", "read")
        (True, False, None)
    """

    scopes: dict[str, frozenset[str]] | None

    @classmethod
    def read(cls, path: str | Path) -> Keys:
        """Read a file with one key a line: hash, and scopes separated by commas; # begins a comment.

        Raises:
            ValueError: a line that is neither.
        """
        found: dict[str, frozenset[str]] = {}
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            scopes = frozenset(words[-1].split(","))
            if len(words) != 2 or len(words[0]) != 64 or not scopes <= {*SCOPES}:
                raise ValueError(
                    f"{path}, line {number}: give the SHA-256 of a key and its scopes, e.g. 'ab12... read,events'; "
                    f"scopes are {', '.join(SCOPES)} (`polyrec serve-key` writes such lines)"
                )
            found[words[0].lower()] = scopes
        if not found:
            raise ValueError(f"{path} holds no keys: `polyrec serve-key --keys {path}` makes one")
        return cls(found)

    def allows(self, key: str | None, scope: str) -> bool | None:
        """Whether a key may do something; None: it is no key."""
        if self.scopes is None:
            return True
        # A lookup by the hash of a random key of 256 bits tells nothing of others by the time it takes.
        own = None if key is None else self.scopes.get(hashed(key))
        return None if own is None else scope in own


def hashed(key: str) -> str:
    """What a file holds of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def new_key(path: str | Path, scopes: str, note: str = "") -> str:
    """Make a key, append its hash to a file, and give the key, which nothing keeps.

    Raises:
        ValueError: an unknown scope.
    """
    given = [scope.strip() for scope in scopes.split(",")]
    if wrong := [scope for scope in given if scope not in SCOPES]:
        raise ValueError(f"unknown scope {wrong[0]!r}; known: {', '.join(SCOPES)}")
    key = secrets.token_urlsafe(32)
    line = f"{hashed(key)} {','.join(given)}" + (f"  # {note}" if note else "")
    path = Path(path)
    if not path.exists():
        path.touch(mode=0o600)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    return key
