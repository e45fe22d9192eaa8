"""`python -m lantern_pl` is the `lantern` command."""

import sys

from lantern_pl.cli import main

sys.exit(main())
