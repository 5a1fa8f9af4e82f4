"""The words of the field stand everywhere; readers must not translate a language of our own."""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

# What to say instead: the pattern of what not to say.
WORDS = {
    "user, users": r"people'?s?|persons?'?|persons'|person's",
    "item, candidate, positive, consumed": r"(?:items?|it|one) (?:was|were|is|are|been) taken|(?:has|have|had) taken|users? took|was not taken|taken items?",
    "impression, event, timestamp, context": r"moments?|being told|is told|are told|was told|were told|be told|told",
    "memorise": r"by heart",
    "trained on": r"(?:has|have|had) (?:already )?learn(?:t|ed)|learnt",
    "split, training set, validation set, test set": r"(?:training|validation|test|valid|train|its|each|which) parts?|parts? of (?:the|a|its) (?:split|data|recipe's data)",
    "history, window, prefix": r"what was seen before|seen before",
    "score, predict, rank": r"answer(?:s|ed|ing)?|ask(?:s|ed|ing)?",
    "embedding, id embedding": r"vectors? of (?:an |the )?(?:ids?|items?)|id vectors?|item vectors?",
    "layer, module": r"floors?|rooms?",
    "int8": r"(?:whole )?numbers of 8 bits|weights of 8 bits|8 bits",
    "soft targets": r"beliefs?|believed?",
    "examples": r"questions?",
    "cold-start item, unseen item": r"(?:never|not|ever|was|were|been) met|met in training",
}
# Standard uses: what is allowed though a pattern finds it.
ALLOWED = [
    r"\bask(?:s|ed)? for\b|asks \(in a terminal\)",
    r"Travel Stack Exchange|question site|questions\.(?:yaml|md)|Questions? (?:and answers|\(Travel)",
]
PACKAGES = [
    *("core", "data", "hub", "inference", "evaluation", "tracking", "training", "runs", "cli", "web", "reporting"),
    *("cards",),
    # *("modules", "models", "distillation"),
]
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_TEXT = {tokenize.STRING, *([tokenize.FSTRING_MIDDLE] if sys.version_info >= (3, 12) else [])}
_VALUE = re.compile(r"\{[^{}\n]*\}")  # of an f-string
_EXAMPLE = re.compile(
    r"^ *(?:>>>|\.\.\.) .*$|\"\w+\"|^ +[\w*]+(?:, [\w*]+)*: ", re.MULTILINE
)  # also names of keys and arguments


def blank(pattern: re.Pattern, text: str) -> str:
    """The text without what a pattern finds, its lines where they were."""
    return pattern.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def hits(text: str, first: int = 1) -> Iterator[tuple[int, str, str]]:
    """(line, what is said, what to say) of the words in a text."""
    text = blank(re.compile("|".join(ALLOWED)), blank(_CODE, text))
    for instead, pattern in WORDS.items():
        for found in re.finditer(rf"\b(?:{pattern})\b", text, re.IGNORECASE):
            yield first + text[: found.start()].count("\n"), found[0], instead


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """(first line, text) of what people read in a module: comments, docstrings and messages; no keys, no examples."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
        elif token.type in _TEXT and " " in token.string.strip("\"' "):
            yield token.start[0], blank(_VALUE, blank(_EXAMPLE, token.string))
