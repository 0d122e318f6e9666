from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from convlens_training import files
from convlens_training.errors import TrainingError
from convlens_training.files import replacing, writing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(path, error=None):
    with replacing(path) as file:
        file.write(b"new")
        if error:
            raise error


class TestReplacing:
    def test_the_content_appears_at_the_end_and_at_once(self, tmp_path):
        path = tmp_path / "x"
        path.write_bytes(b"old")
        with replacing(path) as file:
            file.write(b"new")
            file.flush()
            assert path.read_bytes() == b"old"
        assert path.read_bytes() == b"new"
        assert names(tmp_path) == ["x"]

    def test_it_is_on_disk_before_it_takes_the_place(self, tmp_path, monkeypatch):
        path = tmp_path / "x"
        synced = []
        fsync = os.fsync

        def watched(descriptor):
            synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            assert not path.exists()
            fsync(descriptor)

        monkeypatch.setattr(files.os, "fsync", watched)
        with replacing(path) as file:
            file.write(b"new")
        assert len(synced) == 1
        assert synced[0].startswith(str(tmp_path))

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
    def test_after_an_exception_all_is_as_before(self, tmp_path, error):
        path = tmp_path / "x"
        path.write_bytes(b"old")
        with pytest.raises(error):
            write(path, error())
        assert path.read_bytes() == b"old"
        assert names(tmp_path) == ["x"]

    @pytest.mark.parametrize("call", ["fsync", "replace", "write"])
    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
    def test_where_the_file_system_refuses(self, tmp_path, monkeypatch, call, number):
        path = tmp_path / "x"
        path.write_bytes(b"old")

        def refuse(*arguments):
            raise OSError(number, os.strerror(number))

        if call != "write":
            monkeypatch.setattr(files.os if call == "fsync" else files.Path, call, refuse)
        with pytest.raises(TrainingError) as caught:
            write(path, OSError(number, os.strerror(number)) if call == "write" else None)
        assert str(caught.value).startswith(f"{path} cannot be written ({os.strerror(number)}): make room or change")
        assert path.read_bytes() == b"old"
        assert names(tmp_path) == ["x"]

    def test_a_missing_folder(self, tmp_path):
        with pytest.raises(TrainingError, match="cannot be written"), replacing(tmp_path / "no" / "x"):
            pytest.fail("there is nothing to write to")

    def test_two_at_once_do_not_disturb_each_other(self, tmp_path):
        path = tmp_path / "x"
        with replacing(path) as first, replacing(path) as second:
            first.write(b"first")
            second.write(b"second")
        assert path.read_bytes() == b"first"
        assert names(tmp_path) == ["x"]


def test_writing_lets_other_errors_through(tmp_path):
    with pytest.raises(ValueError, match="mine"), writing(tmp_path / "x"):
        raise ValueError("mine")
