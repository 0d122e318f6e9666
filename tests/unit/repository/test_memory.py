from __future__ import annotations

import pytest

from convlens_server.repository import memory
from convlens_server.repository.store import RepositoryError
from support import put

MIB = 2**20


@pytest.fixture
def room(monkeypatch):
    """Sets how much memory there is."""

    def room(mebibytes: int | None) -> None:
        available = None if mebibytes is None else mebibytes * MIB
        monkeypatch.setattr(memory, "available_memory", lambda: available)

    return room


def test_models_that_fit_one_by_one_but_not_together(tmp_path, room):
    for name in "abc":
        put(tmp_path, name, 1, bytes(10 * MIB))
    # 48 + 3 × (8 + 3 × 10) + 2 × 10.
    room(182)
    memory.check_room(tmp_path, "float32")
    room(181)
    with pytest.raises(RepositoryError, match=r"models in .* \(3\) take about 182\.0 MiB of memory, and 181\.0 "):
        memory.check_room(tmp_path, "float32")


def test_one_that_is_too_large_is_left_to_be_refused_by_itself(tmp_path, room):
    put(tmp_path, "small", 1, bytes(MIB))
    put(tmp_path, "large", 1, bytes(50 * MIB))
    room(100)
    memory.check_room(tmp_path, "float32")


def test_but_not_where_there_is_no_other(tmp_path, room):
    put(tmp_path, "large", 1, bytes(50 * MIB))
    room(100)
    with pytest.raises(RepositoryError, match=r"\(1\) take about"):
        memory.check_room(tmp_path, "float32")


def test_only_the_highest_version_counts_and_of_it_the_file_that_is_served(tmp_path, room):
    put(tmp_path, "a", 9, bytes(50 * MIB))
    path = put(tmp_path, "a", 10, bytes(10 * MIB))
    path.with_name("model.int8.onnx").write_bytes(bytes(MIB))
    room(48 + 8 + 5)
    memory.check_room(tmp_path, "int8")
    with pytest.raises(RepositoryError):
        memory.check_room(tmp_path, "float32")


@pytest.mark.parametrize("mebibytes", [None, 0])
def test_what_is_not_there_is_for_others_to_say(tmp_path, room, mebibytes):
    room(mebibytes)
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "1").mkdir(parents=True)
    memory.check_room(tmp_path, "float32")
    memory.check_room(tmp_path / "nothing", "float32")
