"""What a model card says that no file of a run knows."""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, field, fields

from polyrec.core.settings import conform

_ONE_LINE = ("name", "license", "datasets", "language", "tags", "repository")
_PLAIN = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029<>`\"]{1,300}")


@dataclass
class About:
    """The `card:` section of a recipe.

    Args:
        name: name of the model (default: name of the run's folder).
        license: of the model, as the Hub writes it, e.g. apache-2.0.
        datasets: data set that it was trained on: its name on the Hub where it has one.
        language: of the items' texts, e.g. ["en"].
        description: what the model is, in a sentence or two.
        intended_use, out_of_scope: sentences that are added to those of every card.
        limits: sentences about limits that no figure shows.
        data: sentences about the data: where it comes from, how it was gathered, who may use it.
        tags: further ones.
        repository: repository on the Hub, for the lines that load the model.

    Example:
        >>> About(license="mit", datasets=["movielens-100k"]).license
        'mit'
    """

    name: str | None = None
    license: str | None = None
    datasets: list[str] = field(default_factory=list)
    language: list[str] = field(default_factory=list)
    description: str | None = None
    intended_use: list[str] = field(default_factory=list)
    out_of_scope: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    repository: str | None = None

    def __post_init__(self) -> None:
        conform(self, where="card")
        for known in fields(self):
            value, many = getattr(self, known.name), known.default is MISSING
            texts = value if many else [] if value is None else [value]
            if known.name in _ONE_LINE and not all(_PLAIN.fullmatch(text) for text in texts):
                raise ValueError(
                    f"card: {known.name} is {value!r}; it must be one line without quotes, backticks and angle brackets"
                )
