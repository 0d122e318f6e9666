from __future__ import annotations

import copy

import pytest
import yaml

from convlens_server.config import parse_config
from deploy.manifests import ROOT

KSERVE = ROOT / "deploy" / "kserve"


@pytest.fixture
def manifests():
    return [each for path in sorted(KSERVE.glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())]


def test_every_manifest_fits_its_types(manifests, known_to_kserve):
    assert known_to_kserve(manifests) == ""


def test_the_types_are_strict(manifests, known_to_kserve):
    for manifest in copy.deepcopy(manifests):
        manifest["spec"]["nobodyKnowsThis"] = 1
        assert "nobodyKnowsThis" in known_to_kserve([manifest])
    wrong = copy.deepcopy(manifests[0])
    wrong["spec"]["containers"][0]["ports"][0]["containerPort"] = "8000"
    del wrong["spec"]["containers"][0]["name"]
    assert "must be of type int" in known_to_kserve([wrong])
    assert "Field required" in known_to_kserve([wrong])


@pytest.mark.parametrize("number", [0, 1])
def test_a_pod_fits_its_schema(manifests, valid, number):
    spec = copy.deepcopy(manifests[number]["spec"])
    pod = {key: spec[key] for key in ("containers", "volumes", "tolerations") if key in spec}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "kserve"}, "spec": pod}
    assert valid([manifest], "1.37") == ""


@pytest.mark.parametrize(("number", "device"), [(0, "cpu"), (1, "cuda")])
def test_the_server_understands_its_arguments(manifests, number, device, monkeypatch):
    # What a Service that is called convlens would bring.
    monkeypatch.setenv("CONVLENS_PORT", "tcp://10.0.0.1:8001")
    [container] = manifests[number]["spec"]["containers"]
    config = parse_config(container["args"])
    assert (str(config.models), config.device) == ("/mnt/models", device)
    assert [port["containerPort"] for port in container["ports"]] == [config.http_port, config.port]
    # What Kubernetes grants where nobody says otherwise.
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] + config.drain_timeout + 5 <= 30


def test_the_service_finds_its_runtime(manifests):
    runtimes = {each["metadata"]["name"]: each["spec"] for each in manifests if each["kind"] == "ClusterServingRuntime"}
    [service] = [each for each in manifests if each["kind"] == "InferenceService"]
    model = service["spec"]["predictor"]["model"]
    chosen = [
        name
        for name, runtime in runtimes.items()
        if model["protocolVersion"] in runtime["protocolVersions"]
        for form in runtime["supportedModelFormats"]
        if form["name"] == model["modelFormat"]["name"] and form.get("autoSelect")
    ]
    assert chosen == ["convlens"]
