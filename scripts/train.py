"""`accelerate launch scripts/train.py RECIPE [flags]`: the same as `polyrec train`, one process per device."""

import sys

from polyrec.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
