"""The dashboards, against Grafana's own model of one; tests/containers has each expression answered by a Prometheus."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))


def lost(given: Any, kept: Any, where: str = "") -> list[str]:
    """The paths of what Grafana's model does not know, or changes."""
    if isinstance(given, dict):
        return [
            path
            for key, value in given.items()
            for path in (lost(value, kept[key], f"{where}/{key}") if key in kept else [f"{where}/{key}"])
        ]
    if isinstance(given, list):
        pairs = zip(given, kept, strict=True)
        return [path for number, pair in enumerate(pairs) for path in lost(*pair, f"{where}/{number}")]
    return [] if given == kept else [where]


@pytest.fixture(params=DASHBOARDS, ids=lambda path: path.stem)
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(request.param.read_text())
    return content


def test_grafana_knows_every_field(dashboard):
    kept = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))
    assert lost(dashboard, kept) == []


def test_what_is_misspelt_is_found():
    dashboard = json.loads(DASHBOARDS[0].read_text())
    dashboard["panels"][1]["fieldConfig"]["defaults"]["units"] = "s"
    kept = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))
    assert lost(dashboard, kept) == ["/panels/1/fieldConfig/defaults/units"]


def test_panels_do_not_overlap_and_have_what_they_need(dashboard):
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["targets"]
            assert all(
                target["datasource"] == {"type": "prometheus", "uid": "prometheus"} for target in panel["targets"]
            )
    for one, other in combinations((panel["gridPos"] for panel in panels), 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


def test_the_data_source_that_they_name_is_provisioned():
    [source] = yaml.safe_load((GRAFANA / "datasource.yml").read_text())["datasources"]
    assert (source["uid"], source["type"]) == ("prometheus", "prometheus")
    [provider] = yaml.safe_load((GRAFANA / "dashboards.yml").read_text())["providers"]
    compose = yaml.safe_load((GRAFANA.parents[1] / "docker-compose.yml").read_text())
    mounts = dict(volume.split(":")[:2] for volume in compose["services"]["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
