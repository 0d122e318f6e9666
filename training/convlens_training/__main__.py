"""`python -m convlens_training`, the same as `convlens train`."""

from __future__ import annotations

import sys

from convlens_training.cli import main

sys.exit(main(sys.argv[1:]))
