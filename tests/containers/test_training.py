"""The trainer's image: what it trains is served without another hand, and two of them train together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import convlens
from containers.system import System, docker, run, wait_for

pytestmark = pytest.mark.timeout(1200)

QUICK = ("lecture_cnn", "--data", "mnist5k", "--epochs", "1", "--recipe", "plain")


@pytest.fixture(scope="module")
def trainer() -> str:
    """The image, which scripts/test-containers builds beside the other tests."""
    image, log = os.environ.get("TRAINER_IMAGE", "convlens/trainer:0.1.0"), os.environ.get("TRAINER_LOG")
    if log:
        wait_for("the trainer's image is built", lambda: Path(log).read_text().endswith(("built\n", "failed\n")), 900)
        assert Path(log).read_text().endswith("built\n"), Path(log).read_text()[-3000:]
    return image


def test_what_it_trains_is_served(trainer: str, system: System) -> None:
    system.scale(2)
    system.compose("run", "--rm", "--no-deps", "-T", "trainer", *QUICK, timeout=900)
    with convlens.Client(system.address) as client:
        image = np.zeros((28, 28), np.uint8)

        def versions() -> set[int]:
            return {client.classify(image, model="lecture_cnn").version for _ in range(10)}

        # Of ten answers in a row both replicas have made some.
        wait_for("the new version answers everywhere", lambda: versions() == {2})


def test_it_says_what_is_wrong(trainer: str, tmp_path: Path) -> None:
    """A volume that it may not write to."""
    folder = tmp_path / "models"
    folder.mkdir(mode=0o755)
    ended = run("docker", "run", "--rm", "--init", "--volume", f"{folder}:/models", trainer, *QUICK, check=False)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "models" in ended.stderr.splitlines()[-1]


@pytest.fixture
def network() -> Iterator[str]:
    name = f"convlens-test-{os.getpid()}"
    docker("network", "create", name)
    yield name
    docker("network", "rm", name)


def test_two_machines_train_together(trainer: str, network: str) -> None:
    """As docs/training.md says it, each container being a machine with volumes of its own."""
    names = [f"{network}-trainer-{rank}" for rank in range(2)]
    try:
        for rank, name in enumerate(names):
            docker(
                "run", "--detach", "--init", "--network", network, "--network-alias", f"trainer-{rank}",
                "--hostname", f"trainer-{rank}", "--name", name, "--read-only", "--tmpfs", "/tmp", "--shm-size", "1g",
                "--volume", f"{name}:/models", "--volume", f"{name}-runs:/runs", "--entrypoint", "python3", trainer,
                "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}",
                "--master-addr=trainer-0", "--master-port=29500", "-m", "convlens_training", *QUICK,
            )  # fmt: skip
        for name in names:
            assert docker("wait", name, timeout=900) == "0", run("docker", "logs", name).stderr[-3000:]
        contents = [
            docker("run", "--rm", "--volume", f"{name}:/models", "--entrypoint", "ls", trainer, "/models/lecture_cnn")
            for name in names
        ]
        # The first publishes for both; the other has what its image came with.
        assert "2" in contents[0].split()
        assert "2" not in contents[1].split()
    finally:
        for name in names:
            run("docker", "rm", "--force", name, check=False)
            run("docker", "volume", "rm", name, f"{name}-runs", check=False)
