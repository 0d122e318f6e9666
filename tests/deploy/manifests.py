"""Where manifests are, and the tools that look at them."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "convlens"
VALUES = Path(__file__).parent / "values"
CHECKS = Path(__file__).parent / "checks"
TOOLS = ROOT / ".venv-kubernetes" / "bin"
CLIENTS = ROOT / ".venv-clients" / "bin"


def run(*command: object, given: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(list(map(str, command)), input=given, capture_output=True, text=True, timeout=50, check=False)
