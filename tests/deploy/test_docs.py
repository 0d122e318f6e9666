"""docs/operations.md keeps up with what it explains."""

from __future__ import annotations

import ast
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


def test_every_reason_of_an_error_is_in_the_table_and_no_other():
    texts, reasons = set(), set()
    for file in (ROOT / "server" / "convlens_server").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Constant(value=str(text)):
                    texts.add(text)
                case ast.keyword(arg="reason", value=ast.Constant(value=str(text))):
                    reasons.add(text)
                case ast.Assign(targets=[ast.Name(id="reason")], value=ast.Constant(value=str(text))):
                    reasons.add(text)
    # Of classes whose errors all say more, and of a version that is loaded for who asks for it.
    reasons = {text for text in reasons if text.isupper()} - {"INVALID_IMAGE", "NOT_FOUND", "NOT_LOADED"}
    assert len(reasons) > 40
    table = re.search(r"^## Errors\n(.*?)^## ", GUIDE, re.MULTILINE | re.DOTALL)
    rows = [row.split("|")[2] for row in re.findall(r"^\|.*$", table[1], re.MULTILINE)]
    explained = set(re.findall(r"\b[A-Z]{2,}(?:_[A-Z]+)*\b", " ".join(rows)))
    assert reasons - explained - {"CANCELLED", "DEADLINE_EXCEEDED"} == set()
    # These are made of a field's name.
    assert explained - texts == {"WINDOW_OUT_OF_RANGE", "STRIDE_OUT_OF_RANGE"}


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
