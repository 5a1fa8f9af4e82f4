"""What all tests share."""

import os

# Two test processes on two cores: one thread each. Must be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
