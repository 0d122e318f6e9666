"""deploy/requirements: pinned, hashed, and up to date with pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "deploy" / "requirements").glob("*.txt"))
EXTRAS = {
    "server-cpu": ("server", "stores", "tracing"),
    "server-gpu": ("server-gpu", "stores", "tracing"),
    "trainer": ("server", "training"),
}


def pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ ;]+)", path.read_text(), re.MULTILINE))


def wanted(*extras: str) -> dict[str, Requirement]:
    """What pyproject.toml wants with these extras, those that they name included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = [Requirement(text) for text in project["dependencies"]]
    for extra in extras:
        found += [Requirement(text) for text in project["optional-dependencies"][extra]]
    own = {extra for each in found if each.name == "convlens" for extra in each.extras}
    more = wanted(*own) if own else {}
    return {**{re.sub(r"[-_.]+", "-", each.name).lower(): each for each in found if each.name != "convlens"}, **more}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_everything_is_pinned_and_hashed(path):
    entries = [entry for entry in re.split(r"\n(?=[a-z0-9])", path.read_text()) if not entry.startswith("#")]
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9.-]+==", entry), entry
        assert "--hash=sha256:" in entry, entry
    assert "://" not in path.read_text()


@pytest.mark.parametrize("name", EXTRAS)
def test_it_has_what_the_project_wants(name):
    """Otherwise: scripts/lock."""
    folder = ROOT / "deploy" / "requirements"
    found = pins(folder / f"{name}.txt") | (pins(folder / "torch.txt") if name == "trainer" else {})
    for package, requirement in wanted(*EXTRAS[name]).items():
        assert package in found, f"{package} is missing: run scripts/lock"
        assert found[package] in requirement.specifier, f"{requirement}: run scripts/lock"


def test_what_the_images_share_is_the_same():
    one, other, trainer, torch = (
        pins(ROOT / "deploy" / "requirements" / f"{name}.txt")
        for name in ("server-cpu", "server-gpu", "trainer", "torch")
    )
    assert {name: pin for name, pin in one.items() if other.get(name, pin) != pin} == {}
    assert {name: pin for name, pin in torch.items() if trainer.get(name, pin) != pin} == {}
    assert not any(name.startswith(("torch", "nvidia-")) for name in one)
