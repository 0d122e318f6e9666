"""The one exception of this package."""

from __future__ import annotations


class TrainingError(Exception):
    """A training cannot be done or its result cannot be published; the text names what is wrong and the cure."""
