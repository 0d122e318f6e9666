from __future__ import annotations

import pytest

from convlens_server.errors import ModelError
from convlens_server.repository import aliases


def test_reads_what_it_writes() -> None:
    names = {"stable": 3, "canary": 4}
    assert aliases.read(aliases.written(names)) == names
    assert aliases.read(None) == {}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"stable: 3", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[3]", "is not an object"),
        (b'{"stable": "3"}', "'stable' is '3', but must be a version"),
        (b'{"stable": true}', "'stable' is True, but must be a version"),
        (b'{"stable": 0}', "must be a version, a positive whole number"),
        (b'{"3": 3}', "'3' is no alias"),
        (b'{"": 3}', "'' is no alias"),
    ],
)
def test_what_is_no_alias(content: bytes, error: str) -> None:
    with pytest.raises(ModelError, match=error):
        aliases.read(content)
