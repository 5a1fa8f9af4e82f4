"""One sentence that says why, made of titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# What somebody did with an item, by the binary task whose label was 1; the strongest first.
VERBS = {
    "purchase": "bought",
    "buy": "bought",
    "order": "bought",
    "love": "loved",
    "like": "liked",
    "save": "saved",
    "share": "shared",
    "follow": "followed",
    "complete": "finished",
    "long_view": "watched",
    "listen": "listened to",
    "cart": "put in the cart",
    "click": "clicked",
    "view": "viewed",
}


@dataclass(frozen=True)
class ReasonTemplate:
    """The words of a reason, to be translated or toned.

    Args:
        because: with {parts}, each of `part` with {verb} and {titles}.
        attributes: if no event speaks for the item, with {attributes}.
        nothing: if nothing does.
        stranger: if nothing of the history is known.
        verbs: {binary task: what somebody did whose label was 1}, the strongest first.
        otherwise: the verb of an event that brought none of them.

    Example:
        >>> template = ReasonTemplate()
        >>> template.of_events([("liked", "Heat"), ("liked", "Alien"), ("chose", "Fargo")])
        'Because you liked “Heat” and “Alien” and chose “Fargo”.'
        >>> template.of_attributes({"genres": ["Crime", "Drama"]})
        'Because of its genres (Crime, Drama).'
    """

    because: str = "Because you {parts}."
    part: str = "{verb} {titles}"
    attributes: str = "Because of its {attributes}."
    nothing: str = "No single event of your history stands out: this follows from all of it."
    stranger: str = "Nothing of your history is known: this follows your attributes and overall trends."
    title: str = "“{title}”"
    conjunction: str = "and"
    verbs: Mapping[str, str] = field(default_factory=lambda: dict(VERBS))
    otherwise: str = "chose"

    def verb(self, brought: Sequence[str]) -> str:
        """What an event is called that brought the positive labels of some binary tasks."""
        return next((verb for task, verb in self.verbs.items() if task in brought), self.otherwise)

    def of_events(self, events: Sequence[tuple[str, str]]) -> str:
        """The sentence about (verb, title) of some events, the strongest first."""
        titles: dict[str, list[str]] = {}
        for verb, title in events:
            shown = self.title.format(title=title)
            if shown not in titles.setdefault(verb, []):  # the same item, taken twice
                titles[verb].append(shown)
        parts = [self.part.format(verb=verb, titles=self.listed(found)) for verb, found in titles.items()]
        return self.because.format(parts=self.listed(parts))

    def of_attributes(self, values: Mapping[str, object]) -> str:
        """The sentence about {attribute: value} of the item."""
        texts = [f"{name.replace('_', ' ')} ({as_text(value)})" for name, value in values.items()]
        return self.attributes.format(attributes=self.listed(texts))

    def listed(self, parts: Sequence[str]) -> str:
        """A, B and C."""
        if len(parts) == 1:
            return parts[0]
        return f"{', '.join(parts[:-1])} {self.conjunction} {parts[-1]}"


def as_text(value: object) -> str:
    """A value as it is shown to users.

    Example:
        >>> as_text(["Crime", "Drama"]), as_text(1995.0), as_text(None)
        ('Crime, Drama', '1995', '')
    """
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(as_text(one) for one in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
