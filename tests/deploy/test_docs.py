"""docs/operations.md keeps up with what it explains."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
import yaml

from convlens_server.config import Config
from convlens_server.device import GpuFigures
from convlens_server.metrics import Metrics
from convlens_server.v2.metrics import TritonMetrics
from deploy.manifests import ROOT

GUIDE = (ROOT / "docs" / "operations.md").read_text()


def test_every_metric_has_its_meaning():
    metrics = Metrics("cuda:0", lambda: (1, 2))
    figures = GpuFigures("GPU-1", 0.5, 1, 2, 3.0, 4.0)
    metrics.registry.register(TritonMetrics(metrics, lambda: figures))
    metrics.of("model", "1")
    families = list(metrics.registry.collect())
    assert len(families) > 20
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert re.search(rf"^\|[^|]*`{name}[`{{]", GUIDE, re.MULTILINE), (
            f"{name} is not in a table of docs/operations.md"
        )


@pytest.mark.parametrize("file", ["rules.yml", "envoy.yml"])
def test_every_alert_says_what_to_do(file):
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / file).read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            [row] = re.findall(rf"^\| {rule['alert']}\b(.*)$", GUIDE, re.MULTILINE)
            assert ("(critical)" in row) == (rule["labels"]["severity"] == "critical"), rule["alert"]
            assert len(row.split("|")[2]) > 40


def test_every_span_is_explained():
    for span in ("decode", "queue", "compute", "lens"):
        assert re.search(rf"^\| `{span}` \|", GUIDE, re.MULTILINE)


def test_no_flag_that_the_server_does_not_know():
    known = {field.name.replace("_", "-") for field in fields(Config)} | {"config", "help"}
    for command in re.findall(r"convlens serve((?: --[a-z-]+(?: [^-`\s]\S*)?)+)", GUIDE):
        for flag in re.findall(r"--([a-z-]+)", command):
            assert flag in known, flag
