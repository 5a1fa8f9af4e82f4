"""`python -m polyrec.cli`."""

import sys

from polyrec.cli.main import main

sys.exit(main())
