"""A second architecture: history and candidate in one prompt through a pretrained transformer. Slow and strong."""
