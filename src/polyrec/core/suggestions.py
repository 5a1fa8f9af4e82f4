"""What was meant by a name that is not known: the end of an error message."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

_LISTED, _FEW = 12, 6  # names that are listed in full, and how many of more
_LONGEST = 80  # characters of a name that are compared
# What other libraries call it, by the end of its name here.
_ELSEWHERE = {
    "epochs": "num_train_epochs",
    "max_epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "embedding_size": "hidden_size",
    "embedding_dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "dropout_prob": "dropout",
    "hidden_dropout_prob": "dropout",
    "max_item_list_length": "max_history",
    "topk": "rank_k",
}


def suggest(name: str, known: Sequence[str]) -> str:
    """The nearest name, if one is near, and the known ones; of many names those that are nearest.

    Example:
        >>> suggest("binry", ["binary", "count"])
        "did you mean 'binary'? known: binary, count"
        >>> suggest("epochs", ["task_epochs", "num_train_epochs"])
        "did you mean 'num_train_epochs'? known: task_epochs, num_train_epochs"
        >>> suggest("colour", [])
        'known: none'
    """
    name = name[:_LONGEST]
    close = difflib.get_close_matches(name, known, n=1)
    elsewhere = _ELSEWHERE.get(name.lower())
    if elsewhere is not None and elsewhere in known:
        close = [elsewhere]
    listed, more = list(known), ""
    if len(known) > _LISTED:
        listed = sorted(known, key=lambda other: (other not in close, -_likeness(name, other)))[:_FEW]
        more = f" and {len(known) - _FEW} more"
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(listed) or 'none'}{more}"


def _likeness(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name, other[:_LONGEST]).ratio()
