"""`python -m lantern_pl` is the `lantern` command."""

import sys

from lantern_pl.cli import main

if __name__ == "__main__":
    sys.exit(main())
