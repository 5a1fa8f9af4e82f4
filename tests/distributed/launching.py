"""Two processes on CPU (gloo), started like a user does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
}


def on_two_processes(script: str, folder: Path) -> list[dict]:
    """Run a script of this folder under torchrun; returns the findings that each rank wrote to `folder`."""
    # --standalone finds a free port.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run([*launcher, str(HERE / script), str(folder)])
    return [json.loads((folder / f"findings{rank}.json").read_text()) for rank in range(2)]


def run(command: list[str]) -> str:
    """Run a command to its good end; returns what it printed."""
    done = subprocess.run(
        command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
