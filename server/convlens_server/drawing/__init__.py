"""GetGraph: a network as a graph to draw."""

from __future__ import annotations

from convlens_server.drawing.method import get_graph

__all__ = ["get_graph"]
