"""`python -m convlens.cli`: the `convlens` command."""

import sys

from convlens.cli import main

sys.exit(main())
