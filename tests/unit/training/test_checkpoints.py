from __future__ import annotations

import errno

import pytest
import torch

from convlens_training.checkpoints import Checkpoints
from convlens_training.errors import TrainingError

IDENTITY = {"network": "tiny_vgg", "labels": ["a", "b"], "data": "12ab", "recipe": {"epochs": 3}, "seed": 0}


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path, IDENTITY)


def state(epoch):
    return {"epoch": epoch, "network": {"weight": torch.full((2, 3), float(epoch))}}


def test_the_last_and_the_best(checkpoints):
    assert checkpoints.last() is None
    assert checkpoints.best() is None
    checkpoints.save(state(1), best=True)
    checkpoints.save(state(2), best=False)
    assert checkpoints.last()["epoch"] == 2
    best = checkpoints.best()
    assert best["epoch"] == 1
    assert torch.equal(best["network"]["weight"], torch.ones(2, 3))
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"network": "lecture_cnn"}, "has network tiny_vgg, not lecture_cnn: give the folder of a run of this network"),
        ({"labels": ["a", "c"]}, "its data has other classes now: restore them, or begin anew without --resume"),
        ({"data": "34cd"}, "has data 12ab, not 34cd: its data has changed since: restore it"),
        ({"recipe": {"epochs": 4}}, "its config.yaml has changed since: restore it"),
        ({"seed": 1}, "has seed 0, not 1: its config.yaml has changed since"),
    ],
)
def test_of_another_run(checkpoints, changed, text):
    checkpoints.save(state(1), best=True)
    other = Checkpoints(checkpoints.folder, IDENTITY | changed)
    for load, name in ((other.last, "last.ckpt"), (other.best, "best.ckpt")):
        with pytest.raises(TrainingError) as caught:
            load()
        assert str(caught.value).startswith(f"{checkpoints.folder / name} has ")
        assert text in str(caught.value)


@pytest.mark.parametrize("damage", ["empty", "half", "text", "other", "list", "folder"])
def test_damaged(checkpoints, damage):
    path = checkpoints.folder / "last.ckpt"
    checkpoints.save(state(1), best=False)
    content = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage in ("other", "list"):
        torch.save({"weight": torch.zeros(2)} if damage == "other" else [1, 2], path)
    else:
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "text": b"weights\n"}[damage])
    with pytest.raises(TrainingError, match=r"last\.ckpt is no checkpoint of ours or is damaged \(.+\): begin anew$"):
        checkpoints.last()


def test_without_room_the_former_one_stays(checkpoints, monkeypatch):
    checkpoints.save(state(1), best=True)
    before = {path.name: path.read_bytes() for path in checkpoints.folder.iterdir()}

    def save(_, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(TrainingError, match=r"best\.ckpt cannot be written \(No space left on device\): make room"):
        checkpoints.save(state(2), best=True)
    assert {path.name: path.read_bytes() for path in checkpoints.folder.iterdir()} == before


def test_removes_what_a_kill_has_left(checkpoints):
    checkpoints.save(state(1), best=False)
    (checkpoints.folder / ".last.ckpt.0123abcd.part").write_bytes(b"half")
    assert checkpoints.last()["epoch"] == 1
    assert [path.name for path in checkpoints.folder.iterdir()] == ["last.ckpt"]
