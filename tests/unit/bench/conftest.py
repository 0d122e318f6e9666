from __future__ import annotations

import sys
from pathlib import Path

# The benchmark's modules are beside its script, as Python finds them when it runs that.
sys.path.append(str(Path(__file__).parents[3] / "bench"))
