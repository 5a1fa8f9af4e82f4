"""Model cards, written from what a run has left in its folder."""

from polyrec.cards.card import CARD_NAME, make_card, write_card
from polyrec.cards.figures import unsupported_figures
from polyrec.runs.card_section import About

__all__ = ["CARD_NAME", "About", "make_card", "unsupported_figures", "write_card"]
