"""Simple recommenders that stand beside the model in every table, their settings chosen on validation rows alone."""

from polyrec.evaluation.baselines.table import baseline_table

__all__ = ["baseline_table"]
