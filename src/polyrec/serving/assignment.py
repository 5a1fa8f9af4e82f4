"""Which users see which variant."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from polyrec.core.settings import SettingError

MAIN, SHADOW = "main", "shadow"  # the model of `polyrec serve RUN`, and that of --shadow
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_WHOLE = 2**64


@dataclass(frozen=True)
class VariantOptions:
    """A further model, which some users see.

    Args:
        name: in responses and metrics.
        run: its folder.
        share: of all users.
    """

    name: str
    run: str
    share: float

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in (MAIN, SHADOW):
            raise SettingError("variant", f"has the name {self.name!r}: take letters, digits, '_', '.' and '-'")
        if not 0 <= self.share <= 1:
            raise SettingError("variant", f"{self.name} has the share {self.share:g}: it must lie between 0 and 1")

    @classmethod
    def parse(cls, text: str) -> VariantOptions:
        """From NAME=RUN:SHARE.

        Example:
            >>> VariantOptions.parse("new=runs/b:0.2")
            VariantOptions(name='new', run='runs/b', share=0.2)
        """
        name, _, rest = text.partition("=")
        run, _, share = rest.rpartition(":")
        try:
            number = float(share)
        except ValueError:
            run = ""
        if not run:
            raise SettingError("variant", f"is {text!r}: give NAME=RUN:SHARE, e.g. new=runs/b:0.2")
        return cls(name, run, number)


class Assignment:
    """Assigns each user to one variant: by a hash, so that it needs no memory and stays over restarts and servers.

    The variants take their shares one after the other from 0 on, and the main model has the rest: a share that grows
    keeps its users, as long as those before it stay.

    Args:
        variants: beside the main model.
        salt: of the hash. Another one assigns anew; the same one assigns users alike.

    Example:
        >>> assignment = Assignment([VariantOptions("new", "runs/b", 0.5)], salt="autumn")
        >>> [assignment.of(str(user)) for user in range(5)]
        ['main', 'main', 'new', 'main', 'main']
    """

    def __init__(self, variants: Sequence[VariantOptions], salt: str) -> None:
        if len({variant.name for variant in variants}) < len(variants):
            raise SettingError("variant", "is given twice with one name")
        if sum(variant.share for variant in variants) > 1 + 1e-9:
            raise SettingError("variant", "has shares whose sum is above 1")
        self._salt = hashlib.blake2b(salt.encode()).digest()
        self._shares = {variant.name: variant.share for variant in variants}
        self._bounds: list[tuple[float, str]] = []
        upper = 0.0
        for variant in variants:
            upper += variant.share
            self._bounds.append((upper, variant.name))

    def share(self, variant: str) -> float:
        """The share of all users that see a variant."""
        if variant == MAIN:
            return 1.0 - sum(self._shares.values())
        return self._shares.get(variant, 0.0)

    def of(self, user: str | None) -> str:
        """The variant of a user; the main model, where nothing tells users apart."""
        if user is None or not self._bounds:
            return MAIN
        digest = hashlib.blake2b(user.encode(), digest_size=8, key=self._salt).digest()
        place = int.from_bytes(digest) / _WHOLE
        return next((name for upper, name in self._bounds if place < upper), MAIN)
