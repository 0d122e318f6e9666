"""Aliases: names of versions, such as stable and canary, in the file aliases.json of a model's folder.

The file holds one JSON object, {"stable": 3, "canary": 4}. A version that an alias names is served whatever the
version policy says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from convlens_server.errors import ModelError

FILE = "aliases.json"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


def read(content: bytes | None) -> dict[str, int]:
    """The versions by their aliases.

    Args:
        content: Of the file; None if there is none.

    Raises:
        ModelError: It is not such an object; the text names the entry.
    """
    if content is None:
        return {}
    try:
        values = json.loads(content)
    except ValueError as error:
        raise ModelError(f'{FILE} is not JSON ({error}); write e.g. {{"stable": 3}}') from None
    if not isinstance(values, dict):
        raise ModelError(f'{FILE} is not an object of aliases and versions; write e.g. {{"stable": 3}}')
    for name, number in values.items():
        try:
            check(name, number)
        except ModelError as error:
            raise ModelError(f"{FILE}: {error}") from None
    return values


def written(aliases: Mapping[str, int]) -> bytes:
    """The file's content."""
    return (json.dumps(dict(sorted(aliases.items())), indent=2) + "\n").encode()


def version_of(text: str) -> int | str:
    """The version that a text names: its number, 0 for the default if it is empty, or else what may be an alias."""
    if not text:
        return 0
    # More digits than any version has.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else text


def check(name: str, number: object) -> None:
    """Raises ModelError if they are no alias and no version."""
    if not _NAME.fullmatch(name):
        raise ModelError(f"{name[:80]!r} is no alias: begin with a letter, go on with letters, digits, '_.-'")
    if type(number) is not int or number < 1:
        raise ModelError(f"{name!r} is {number!r}, but must be a version, a positive whole number")
