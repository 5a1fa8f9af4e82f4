"""Whether one model can take the place of another that is served."""

from __future__ import annotations

from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor


def check_alike(now: PolyRecProcessor, new: PolyRecProcessor) -> None:
    """Refuse a model whose requests or responses would be others.

    Raises:
        ValueError: names what differs.
    """
    if (before := now.columns) != new.columns:
        names = [name for name in vars(before) if getattr(before, name) != getattr(new.columns, name)]
        raise ValueError(f"the new model reads other columns ({', '.join(names)}): pass force to serve it all the same")
    kinds = [{task.name: (task.head, task.label) for task in processor.tasks} for processor in (now, new)]
    if kinds[0] != kinds[1]:
        names = sorted({name for name in {**kinds[0], **kinds[1]} if kinds[0].get(name) != kinds[1].get(name)})
        raise ValueError(f"the new model has other tasks ({', '.join(names)}): pass force to serve it all the same")
