"""What `polyrec train` writes to a terminal."""

import re

from run_fixtures import trained_run
from transformers.utils import logging


def test_training_output_is_readable(tmp_path, capfd):
    """A bar for every checkpoint between the lines, a dictionary for every evaluation, a sentence wider than a screen."""
    logging.enable_progress_bar()  # commands that ran before may have turned it off for all
    training = {"num_train_epochs": 2, "use_cpu": True, "logging_steps": 1, "save_strategy": "epoch"}
    trained_run(tmp_path, training=training)
    written = capfd.readouterr()
    assert "model shards" not in written.err
    assert not re.search(r"\{'\w+':", written.out + written.err)
    assert len(re.findall(r"^epoch \d", written.out + written.err, re.MULTILINE)) == 2
    sentences = [
        line for line in written.out.splitlines() if "interval" in line or "chosen" in line or "left out" in line
    ]
    assert len(sentences) > 2
    assert max(map(len, sentences)) <= 120
