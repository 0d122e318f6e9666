"""What the tests of manifests share: the chart as helm renders it, and schemas to hold it against."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.manifests import CHART, CHECKS, CLIENTS, TOOLS, run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what has no tools here, and says what makes them."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if {"render", "helm", "valid"}.intersection(fixtures) and not (TOOLS / "helm").exists():
            item.add_marker(pytest.mark.skip(reason="scripts/kubernetes-tools has not been run"))
        if "known_to_kserve" in fixtures and not (CLIENTS / "python").exists():
            item.add_marker(pytest.mark.skip(reason="scripts/clients has not been run"))
        if "promtool" in fixtures and not (TOOLS / "promtool").exists():
            item.add_marker(pytest.mark.skip(reason="scripts/kubernetes-tools found no promtool"))


@pytest.fixture
def helm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs helm."""

    def helm(*arguments: object) -> subprocess.CompletedProcess[str]:
        return run(TOOLS / "helm", *arguments)

    return helm


@pytest.fixture
def render(helm: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., list[dict[str, Any]]]:
    """Gives the manifests of the release `lenses` in the namespace `vision`."""

    def render(*flags: object) -> list[dict[str, Any]]:
        done = helm("template", "lenses", CHART, "--namespace", "vision", *flags)
        assert done.returncode == 0, done.stderr
        return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]

    return render


@pytest.fixture
def valid() -> Callable[[list[dict[str, Any]], str], str]:
    """What is wrong with manifests, for a version of Kubernetes; nothing if they are valid."""

    def valid(manifests: list[dict[str, Any]], version: str) -> str:
        done = run(TOOLS / "python", CHECKS / "kubernetes_schemas.py", version, given=json.dumps(manifests))
        assert done.returncode == 0, done.stderr
        return done.stdout

    return valid


@pytest.fixture
def known_to_kserve() -> Callable[[list[dict[str, Any]]], str]:
    """What is wrong with manifests of KServe's kinds; nothing if they are valid."""

    def known(manifests: list[dict[str, Any]]) -> str:
        done = run(CLIENTS / "python", "-W", "ignore", CHECKS / "kserve_types.py", given=json.dumps(manifests))
        assert done.returncode == 0, done.stderr
        return done.stdout

    return known


@pytest.fixture
def promtool(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs promtool with a document as its last argument's file."""

    def promtool(*arguments: object, document: object) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "document.yml"
        path.write_text(yaml.safe_dump(document))
        return run(TOOLS / "promtool", *arguments, path)

    return promtool
