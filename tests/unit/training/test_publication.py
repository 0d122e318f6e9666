from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from convlens_training import publication
from convlens_training.errors import TrainingError
from convlens_training.publication import check_repository, publish


def files(models):
    return {str(path.relative_to(models)): path.read_bytes() for path in models.rglob("*") if path.is_file()}


def test_versions_count_up(tmp_path):
    models = tmp_path / "new" / "models"
    first = publish({"model.onnx": b"a"}, models, "digits")
    assert (first.version, first.path) == (1, models / "digits" / "1" / "model.onnx")
    assert publish({"model.onnx": b"b"}, models, "digits").version == 2
    assert publish({"model.onnx": b"c"}, models, "animals").version == 1
    assert files(models) == {"digits/1/model.onnx": b"a", "digits/2/model.onnx": b"b", "animals/1/model.onnx": b"c"}


def test_the_next_version_is_behind_the_highest(tmp_path):
    for name in ("3", "10", "x", "README.md", "٤٤"):
        (tmp_path / "digits" / name).mkdir(parents=True)
    assert publish({"model.onnx": b"a"}, tmp_path, "digits").version == 11


def test_a_version_is_readable_by_others(tmp_path):
    path = publish({"model.onnx": b"a"}, tmp_path, "digits").path
    umask = os.umask(0)
    os.umask(umask)
    assert path.parent.stat().st_mode & 0o777 == 0o777 & ~umask
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_many_at_once_get_a_version_each(tmp_path, monkeypatch):
    # All have looked for the next version before any takes it: all but one have to try again.
    barrier = threading.Barrier(8)
    rename = Path.rename
    tried = threading.local()

    def together(self, target):
        if not hasattr(tried, "once"):
            tried.once = True
            barrier.wait(30)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", together)
    contents = [bytes([n]) * 1000 for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        published = list(pool.map(lambda content: publish({"model.onnx": content}, tmp_path, "digits"), contents))
    assert sorted(one.version for one in published) == list(range(1, 9))
    for one, content in zip(published, contents, strict=True):
        assert one.path.read_bytes() == content
    assert len(files(tmp_path)) == 8


def test_a_version_appears_with_all_that_is_in_it(tmp_path, monkeypatch):
    seen = []
    rename = Path.rename

    def watched(self, target):
        seen.append((self.name, (self / "model.onnx").read_bytes(), Path(target).exists()))
        rename(self, target)
        seen.append((target / "model.onnx").read_bytes())

    monkeypatch.setattr(Path, "rename", watched)
    publish({"model.onnx": b"abc"}, tmp_path, "digits")
    (name, before, existed), after = seen
    assert name.startswith(".")
    assert (before, existed, after) == (b"abc", False, b"abc")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", [1, 2])
def test_an_interruption_leaves_nothing(tmp_path, monkeypatch, error, call):
    publish({"model.onnx": b"a"}, tmp_path, "digits")
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == call:
            raise error

    monkeypatch.setattr(publication.os, "fsync", fsync)
    expected = TrainingError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        publish({"model.onnx": b"b"}, tmp_path, "digits")
    if expected is TrainingError:
        assert "could not be published in" in str(caught.value)
        assert "No space left on device" in str(caught.value)
    assert files(tmp_path) == {"digits/1/model.onnx": b"a"}
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


KILLED = """
import os, signal, sys
from pathlib import Path
from convlens_training import publication

models, calls = Path(sys.argv[1]), int(sys.argv[2])
sync = os.fsync

def fsync(descriptor):
    global calls
    calls -= 1
    if not calls:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(descriptor)

os.fsync = fsync
publication.publish({"model.onnx": b"new", "model.float16.onnx": b"n", "model.int8.onnx": b"nw"}, models, sys.argv[3])
"""


@pytest.mark.parametrize("name", ["digits", "another"])
@pytest.mark.parametrize("call", range(1, 7))
def test_a_kill_at_any_moment_leaves_a_whole_version_or_none(tmp_path, name, call):
    """Each file is written to disk, then the folder of the version, the model's, and the repository: six moments."""
    publish({"model.onnx": b"a"}, tmp_path, "digits")
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(call), name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    next_version = 2 if name == "digits" else 1
    new = tmp_path / name / str(next_version)
    whole = {"model.onnx": b"new", "model.float16.onnx": b"n", "model.int8.onnx": b"nw"}
    # The first four are before the rename.
    assert {path.name: path.read_bytes() for path in new.glob("*")} == ({} if call <= 4 else whole)
    visible = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert visible == (["digits"] if name == "digits" or call <= 4 else ["another", "digits"])
    assert (tmp_path / "digits" / "1" / "model.onnx").read_bytes() == b"a"
    assert publish({"model.onnx": b"b"}, tmp_path, name).version == next_version + (call > 4)


def test_a_model_that_could_not_be_published_does_not_appear(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publication.os, "fsync", full)
    with pytest.raises(TrainingError, match="No space left on device"):
        publish({"model.onnx": b"a"}, tmp_path, "digits")
    assert list(tmp_path.iterdir()) == []


class TestCheckRepository:
    def test_missing_folders_are_fine_and_not_made(self, tmp_path):
        check_repository(tmp_path / "a" / "b", "digits")
        assert list(tmp_path.iterdir()) == []

    def test_a_file_in_the_way(self, tmp_path):
        (tmp_path / "digits").touch()
        with pytest.raises(TrainingError, match="digits is not a folder"):
            check_repository(tmp_path, "digits")
        with pytest.raises(TrainingError, match="could not be published"):
            publish({"model.onnx": b"a"}, tmp_path, "digits")

    def test_no_permission(self, tmp_path, monkeypatch):
        monkeypatch.setattr(publication.os, "access", lambda path, mode: False)
        with pytest.raises(TrainingError, match="cannot be written to: change its permissions"):
            check_repository(tmp_path, "digits")
