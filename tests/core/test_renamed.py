"""Parts that were written for an earlier version."""

import pytest
import torch

from polyrec import PolyRecConfig
from polyrec.core.schema import TaskConfig
from polyrec.modules.heads.binary import BinaryHead


def test_hooks_and_methods_of_a_head_work_by_their_old_names():
    """Prevents a head from outside from being silently read with the methods of its base class."""
    with pytest.warns(DeprecationWarning, match=r"OldHead\.\w+ is now (options_from_labels|canonical_logits)"):

        class OldHead(BinaryHead):
            @classmethod
            def starting_options(cls, task, summary):
                return {"prior": 0.25}

            def exchanged(self, logits):
                return 7 * logits

    config = PolyRecConfig(tasks=[{"name": "like", "head": "binary"}], hidden_size=4)
    head = OldHead(config.task_configs[0], config)
    assert OldHead.options_from_labels(TaskConfig("like", "binary"), {}) == {"prior": 0.25}
    assert head.canonical_logits(torch.ones(1)) == 7
    with pytest.warns(DeprecationWarning, match="refuse is now option_error"):
        assert "it must be" in str(head.refuse("prior", "it must be 1"))
