"""Why a model predicts as it does: past events, attributes and words of the item, experts; and what it knows
overall."""

from polyrec.inference.explanation.explain import explain

__all__ = ["explain"]
