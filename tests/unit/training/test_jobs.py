from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from convlens_training.errors import TrainingError
from convlens_training.jobs import Job, resumed
from convlens_training.recipes import RECIPES
from convlens_training.runs import RunFolder

JOB = Job(
    network="tiny_vgg",
    recipe=RECIPES["small_photos_norm"],
    data="some/animals",
    data_root=None,
    models=Path("m"),
    name="animals",
    seed=7,
    threads=2,
    patience=3,
    weights=Path("w.pth"),
    image_size=96,
    max_drop=0.5,
    tensorboard=True,
)


@pytest.fixture
def run(tmp_path):
    run = RunFolder.create(tmp_path / "runs", JOB.network, JOB.data)
    run.write_config(JOB.config())
    return run


def test_goes_on_with_all_that_it_was_asked_for(run):
    assert resumed(run.path, {}) == dataclasses.replace(JOB, runs=run.path.parent, resume=run.path)


def test_may_be_moved(run):
    moved = {"device": "cpu", "devices": 2, "nodes": 3, "threads": 4, "tensorboard": False}
    expected = dataclasses.replace(JOB, runs=run.path.parent, resume=run.path, **moved)
    assert resumed(run.path, moved) == expected


def test_may_be_told_again_what_it_was(run):
    given = {"network": "tiny_vgg", "recipe": "small_photos_norm", "epochs": 65, "models": Path("m"), "seed": 7}
    assert resumed(run.path, given).recipe == JOB.recipe


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"network": "tiny_vgg_bn"}, "that run has network tiny_vgg, not tiny_vgg_bn: leave it out"),
        ({"recipe": "photos"}, "that run has recipe small_photos_norm, not photos"),
        ({"batch_size": 3}, "that run has batch size 64, not 3"),
        ({"learning_rate": 0.1}, "that run has learning rate 0.008, not 0.1"),
        ({"models": Path("other")}, "that run has models m, not other"),
        ({"mixed_precision": "on"}, "that run has mixed precision auto, not on"),
    ],
)
def test_cannot_become_another(run, given, text):
    with pytest.raises(TrainingError) as caught:
        resumed(run.path, given)
    assert str(caught.value).startswith(f"--resume {run.path}: {text}")


def test_is_finished(run):
    run.write_result({"accuracy": 1.0})
    with pytest.raises(TrainingError, match="the run is finished; leave --resume out to begin a new one"):
        resumed(run.path, {})


@pytest.mark.parametrize("config", [{}, {**JOB.config(), "more": 1}, {**JOB.config(), "recipe": {"name": "x"}}])
def test_of_another_release(run, config):
    run.write_config(config)
    with pytest.raises(TrainingError, match=r"config\.yaml is damaged or of another release \(.+\): begin anew"):
        resumed(run.path, {})
