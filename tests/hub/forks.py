"""Clients of the Hub that start quickly: one process imports polyrec, and each client is a fork of it.

A fork has imported polyrec and done nothing else. What `huggingface_hub` reads from the environment when it is
imported (its cache, whether it is offline) is set in `huggingface_hub.constants`, which it looks at when it is used.
Reads lines of JSON, {"code", "cwd", "env", "cache", "offline", "log"}, and answers each with its exit status.
"""

import json
import os
import sys
import traceback


def main() -> None:
    import huggingface_hub.constants as constants

    # What loading imports when it is first needed: once here instead of once in each fork.
    import pandas  # noqa: F401
    import peft  # noqa: F401
    import pyarrow.dataset  # noqa: F401
    import torch
    from transformers.models.bert import modeling_bert  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    import polyrec.pipeline
    import polyrec.training.trainer  # noqa: F401

    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if (child := os.fork()) == 0:
            with open(asked["log"], "wb") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            os.chdir(asked["cwd"])
            os.environ.update(asked["env"])
            constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = asked["cache"], asked["offline"]
            with open("pid", "w") as file:
                file.write(str(os.getpid()))
            status = 0
            try:
                exec(compile(asked["code"], "client", "exec"), {"__name__": "__main__"})
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
