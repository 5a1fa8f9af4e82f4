"""Texts of somebody's data, made harmless for the terminal and for one line of Markdown."""

from __future__ import annotations

import re
import unicodedata

# Control characters, and those that turn the direction of writing around or break lines unseen.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")
_TARGET = re.compile(r"\]\(\s*(?!https?://)[^)]*\)|\]:\s*(?!https?://)\S*", re.IGNORECASE)


def printable(text: str) -> str:
    r"""A text for one line of a terminal: what would move the cursor or turn the line around is spelt out.

    Example:
        >>> printable("\x1b[2JAlien\n")
        '\\u001b[2JAlien\\u000a'
    """
    return _UNSEEN.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def printable_lines(text: str) -> str:
    """[`printable`] for each line of a text, e.g. of a message or of rows of JSON."""
    return "\n".join(printable(line) for line in text.split("\n"))


def sentence(text: str) -> str:
    """A sentence for a card: one line in which emphasis, code and links to the web stay, and HTML and pictures do not.

    Example:
        >>> sentence("See <b>this</b>\\n# ![x](http://a/b.png), [docs](https://a.org), [y](javascript:z)")
        'See &lt;b&gt;this&lt;/b&gt; # [x](http://a/b.png), [docs](https://a.org), [y]'
    """
    plain = " ".join(_UNSEEN.sub(" ", unicodedata.normalize("NFC", text)).split())
    return _TARGET.sub("]", plain.replace("![", "[").replace("<", "&lt;").replace(">", "&gt;"))
