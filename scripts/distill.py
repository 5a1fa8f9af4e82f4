"""The same as `polyrec distill`, one process per device.

`accelerate launch --config_file scripts/accelerate/multi_gpu.yaml scripts/distill.py RECIPE --teacher RUN [flags]`
"""

import sys

from polyrec.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["distill", *sys.argv[1:]]))
