"""Learning what is new without forgetting what is old: new events, and a share of the windows of old ones."""

from __future__ import annotations

import numpy as np

from polyrec.data.event_log import Candidates
from polyrec.data.sequences import SequenceDataset


def with_replay(dataset: SequenceDataset, new: np.ndarray, share: float, seed: int = 0) -> SequenceDataset:
    """The examples of new events, and all those of a share of the windows that hold old ones.

    Replaying a few old examples keeps a network from forgetting what it does not meet any more (Rolnick et al., 2019,
    "Experience Replay for Continual Learning"). Windows are drawn and not single events, because a window costs the
    same however many of its events are scored.

    Args:
        dataset: examples of old and new events of one log.
        new: bool [R], the log's events that are new.
        share: of the windows with old events, in [0, 1].
        seed: of the draw.

    Example:
        >>> from polyrec.data.event_log import EventLog
        >>> import pyarrow as pa
        >>> nine = np.arange(9)
        >>> log = EventLog(nine // 3, nine, nine.astype(float), nine, nine, pa.array([1, 2, 3]), np.ones((9, 1)))
        >>> data = SequenceDataset(log, Candidates(nine, log.visible()), ["like"], max_history=3)
        >>> with_replay(data, new=nine == 8, share=0).candidates.event.tolist()
        [8]
        >>> with_replay(data, new=nine == 8, share=1).candidates.event.tolist()
        [0, 1, 2, 3, 4, 5, 6, 7, 8]
    """
    if not 0 <= share <= 1:
        raise ValueError(f"replay is {share}; it must be a share of the old windows, in [0, 1]")
    candidates = dataset.candidates
    spans = dataset.spans(np.arange(len(dataset)))
    window = np.repeat(np.arange(len(dataset)), spans.last_candidate - spans.first_candidate)
    is_new = new[candidates.event]
    old_windows = np.unique(window[~is_new])
    drawn = np.random.default_rng(seed).choice(old_windows, round(share * len(old_windows)), replace=False)
    kept = is_new | np.isin(window, drawn)
    return dataset.with_candidates(
        Candidates(candidates.event[kept], candidates.position[kept], candidates.statistic[kept]), dataset.statistics
    )
