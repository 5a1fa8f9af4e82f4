"""The same data gives the same gradient, however it is cut into batches and processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

HERE = Path(__file__).parent


def run(folder, batch_size, accumulation=1, processes=1):
    """Gradients of one step, computed in fresh processes."""
    output = folder / f"{batch_size}x{accumulation}x{processes}.safetensors"
    command = [str(HERE / "gradient_run.py"), str(output), str(batch_size), str(accumulation)]
    if processes == 1:
        command = [sys.executable, *command]
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        command = [*launcher, "--master_addr=127.0.0.1", f"--master_port={port}", *command]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return safetensors.torch.load_file(output)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"), 64)


@pytest.mark.parametrize(("batch_size", "accumulation", "processes"), [(16, 4, 1), (32, 1, 2), (16, 2, 2)])
def test_gradient_does_not_depend_on_how_data_is_cut(whole, tmp_path, batch_size, accumulation, processes):
    """Prevents means of means: with missing labels, and a task absent from whole batches, they weigh rows unequally."""
    cut = run(tmp_path, batch_size, accumulation, processes)
    assert cut.keys() == whole.keys()
    difference = torch.cat([(cut[n] - whole[n]).flatten() for n in whole]).norm()
    assert difference / torch.cat([g.flatten() for g in whole.values()]).norm() < 1e-5
