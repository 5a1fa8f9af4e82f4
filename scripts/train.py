"""The same as `polyrec train`, one process per device.

`accelerate launch --config_file scripts/accelerate/multi_gpu.yaml scripts/train.py RECIPE [flags]`
"""

import sys

from polyrec.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
