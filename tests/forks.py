"""Processes that start quickly: one imports polyrec, and each of those that tests ask for is a fork of it.

A fork has imported polyrec and done nothing else. What `huggingface_hub` reads from the environment when it is
imported (its cache, whether it is offline) is set in `huggingface_hub.constants`, which it looks at when it is used.
Reads lines of JSON, {"code", "cwd", "log", "env", "cache", "offline", "longest_sleep"} of which the last four may be
left out, and answers each with its exit status. [`Forks`] is the other side.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any


class Forks:
    """Starts the process that forks, and ends it.

    Args:
        env: its environment, and that of its forks.
    """

    def __init__(self, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, code: str, cwd: Path, log: Path, **options: Any) -> None:
        """Run Python code in a fork, in a folder that gets its `pid`; what it prints goes to a file."""
        assert self._process.stdin is not None
        asked = {"code": code, "cwd": str(cwd), "log": str(log), **options}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()

    @property
    def answers(self) -> IO[str]:
        """Where the exit status of each fork comes in a line."""
        assert self._process.stdout is not None
        return self._process.stdout

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: Any) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()


def rest(sleep: Callable[[float], None], longest: float, seconds: float) -> None:
    """Sleep, but not for longer than so many seconds."""
    sleep(min(seconds, longest))


def main() -> None:
    """Import, then fork."""
    import huggingface_hub.constants as constants

    # What loading imports when it is first needed: once here instead of once in each fork.
    import pandas  # noqa: F401
    import peft  # noqa: F401
    import pyarrow.dataset  # noqa: F401
    import torch
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.models.bert import modeling_bert  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    import polyrec.inference.pipeline
    import polyrec.training.trainer  # noqa: F401

    torch.set_num_threads(1)
    get_checkpoint_conversion_mapping("llama")  # compiles a thousand patterns, once per process
    gc.collect()
    gc.freeze()  # else the first collection of each fork copies every page that it looks at
    for line in sys.stdin:
        asked = json.loads(line)
        if (child := os.fork()) == 0:
            with open(asked["log"], "wb") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            os.chdir(asked["cwd"])
            os.environ.update(asked.get("env", {}))
            constants.HF_HUB_CACHE = asked.get("cache", constants.HF_HUB_CACHE)
            constants.HF_HUB_OFFLINE = asked.get("offline", constants.HF_HUB_OFFLINE)
            if "longest_sleep" in asked:
                time.sleep = partial(rest, time.sleep, asked["longest_sleep"])
            with open("pid", "w") as file:
                file.write(str(os.getpid()))
            status = 0
            try:
                exec(compile(asked["code"], "fork", "exec"), {"__name__": "__main__"})
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else 1
            except BaseException:
                traceback.print_exc()
                status = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
