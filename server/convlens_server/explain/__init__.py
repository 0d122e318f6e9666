"""ExplainUnit: the exact arithmetic that makes one unit's activation of the values before it."""

from __future__ import annotations

from convlens_server.explain.method import explain_unit

__all__ = ["explain_unit"]
