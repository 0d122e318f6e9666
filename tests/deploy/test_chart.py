from __future__ import annotations

import copy
import json
from dataclasses import fields

import pytest
import yaml

from convlens_server.config import Config, parse_config
from deploy.manifests import CHART, ROOT, VALUES

SETS = ("", *sorted(path.name for path in VALUES.glob("*.yaml")))
# The oldest that the chart says it runs on, and the newest that there is a schema of.
VERSIONS = ("1.30", "1.37")


def flags_of(name):
    return ("--values", VALUES / name) if name else ()


def only(manifests, kind, name="lenses-convlens"):
    [found] = [each for each in manifests if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pod_of(manifests):
    spec = only(manifests, "Deployment")["spec"]["template"]["spec"]
    [container] = spec["containers"]
    return spec, container


def settings_of(container, monkeypatch):
    """The configuration of a server with a container's environment."""
    for variable in container["env"]:
        if variable["name"].startswith("CONVLENS_"):
            monkeypatch.setenv(variable["name"], variable["value"])
    return parse_config([])


@pytest.mark.parametrize("name", SETS)
def test_helm_finds_nothing_wrong(helm, name):
    done = helm("lint", "--strict", CHART, *flags_of(name))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SETS)
def test_every_manifest_fits_its_schema(render, valid, name, version):
    manifests = render(*flags_of(name), "--kube-version", version)
    assert valid(manifests, version) == ""


def test_the_schemas_are_strict(render, valid):
    manifests = render(*flags_of("everything.yaml"))
    for manifest in copy.deepcopy(manifests):
        manifest["spec" if "spec" in manifest else "metadata"]["nobodyKnowsThis"] = 1
        assert "nobodyKnowsThis" in valid([manifest], VERSIONS[-1])


def test_everything_that_can_be_there_is(render):
    kinds = sorted(each["kind"] for each in render(*flags_of("everything.yaml")))
    assert kinds == [
        "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget", "PrometheusRule", "Service",
        "Service", "ServiceAccount", "ServiceMonitor",
    ]  # fmt: skip
    kinds = sorted(each["kind"] for each in render())
    assert kinds == ["Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service", "Service", "ServiceAccount"]


def test_an_old_kubernetes_is_refused(helm):
    done = helm("template", "lenses", CHART, "--kube-version", "1.29")
    assert done.returncode != 0
    assert "kubeVersion" in done.stderr


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ("replica=3", "replica"),
        ("replicas=many", "replicas"),
        ("models.source=bucket", "source"),
        ("models.source=store", "url"),
        ("tls.clients=true", "secret"),
        ("settings.port=9000", "port"),
        ("settings.drain-timeout=9", "drain-timeout"),
        ("settings.MAX_QUEUE=9", "MAX_QUEUE"),
        ("settings.max-bach=9", "max-bach"),
        ("drain.announceSeconds=0", "announceSeconds"),
        ("gpu.resource=gpu", "resource"),
        ("tracing.endpoint=collector:4317", "endpoint"),
        ("tracing.share=2", "share"),
        ("resources.limits.memory=lots", "memory"),
        ("autoscaling.enabled=true,autoscaling.minReplicas=11", "minReplicas"),
    ],
)
def test_wrong_values_are_refused_by_their_names(helm, given, word):
    done = helm("template", "lenses", CHART, "--set", given)
    assert done.returncode != 0
    assert word in done.stderr


def test_a_setting_is_any_flag_that_the_chart_does_not_set_itself():
    schema = json.loads((CHART / "values.schema.json").read_text())
    settings = set(schema["properties"]["settings"]["propertyNames"]["enum"])
    flags = {field.name.replace("_", "-") for field in fields(Config)} - {"datasets"} | {"dataset"}
    given = {"models", "model-control", "poll-seconds", "model-cache", "host", "port", "http-port", "device"}
    given |= {"tls-certificate", "tls-key", "tls-client-ca", "drain-timeout", "drain-delay"}
    given |= {"trace-endpoint", "trace-share"}
    assert settings == flags - given


def test_the_server_understands_what_it_is_told(render, monkeypatch):
    _, container = pod_of(render())
    expected = {
        "host": "0.0.0.0",
        "device": "cpu",
        "model_control": "poll",
        "poll_seconds": 15.0,
        "drain_timeout": 30.0,
        "port": 8001,
        "http_port": 8000,
    }
    config = settings_of(container, monkeypatch)
    assert {name: getattr(config, name) for name in expected} == expected
    assert str(config.models) == "/models"
    assert config.trace_endpoint == ""


def test_the_server_understands_everything(render, monkeypatch, tmp_path):
    for file in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / file).touch()
    _, container = pod_of(render(*flags_of("everything.yaml")))
    for variable in container["env"]:
        variable["value"] = variable["value"].replace("/tls/", f"{tmp_path}/")
    config = settings_of(container, monkeypatch)
    assert config.models == "s3://bucket/models"
    assert str(config.model_cache) == "/cache"
    # Numbers that YAML's own way would write as 1e+06.
    assert (config.max_queue, config.max_feature_map_bytes, config.max_queue_delay_ms) == (1_000_000, 268_435_456, 0.5)
    assert (config.lazy, config.precision, config.drain_timeout) == (True, "int8", 60.0)
    assert (config.trace_endpoint, config.trace_share) == ("http://collector.observability:4317", 0.05)
    assert config.tls_client_ca == tmp_path / "ca.crt"


@pytest.mark.parametrize("name", SETS)
def test_a_pod_has_time_to_drain(render, monkeypatch, name):
    spec, container = pod_of(render(*flags_of(name)))
    drain = next(float(each["value"]) for each in container["env"] if each["name"] == "CONVLENS_DRAIN_TIMEOUT")
    announced = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert announced >= 1
    assert spec["terminationGracePeriodSeconds"] >= announced + drain + 5


@pytest.mark.parametrize("name", SETS)
def test_a_pod_may_do_as_little_as_it_needs(render, name):
    spec, container = pod_of(render(*flags_of(name)))
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["automountServiceAccountToken"]
    assert not spec["enableServiceLinks"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in spec["volumes"]}


@pytest.mark.parametrize("name", SETS)
def test_what_points_to_pods_finds_them(render, name):
    manifests = render(*flags_of(name))
    deployment = only(manifests, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    ports = {each["name"]: each["containerPort"] for each in pod_of(manifests)[1]["ports"]}
    services = [each for each in manifests if each["kind"] == "Service"]
    selectors = [each["spec"]["selector"] for each in services]
    selectors += [
        each["spec"]["selector"]["matchLabels"]
        for each in manifests
        if each["kind"] in ("Deployment", "PodDisruptionBudget")
    ]
    for selector in selectors:
        assert selector.items() <= labels
    for service in services:
        assert {each["targetPort"]: each["port"] for each in service["spec"]["ports"]} == ports
    monitors = [each for each in manifests if each["kind"] == "ServiceMonitor"]
    for monitor in monitors:
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        [service] = [each for each in services if wanted <= each["metadata"]["labels"].items()]
        assert service["spec"]["clusterIP"] == "None"


def test_probes_ask_by_grpc_where_kubernetes_can(render):
    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    _, container = pod_of(render())
    assert [container[probe]["grpc"] for probe in probes] == [{"port": 8001}] * 3
    _, container = pod_of(render(*flags_of("everything.yaml")))
    assert [container[probe]["httpGet"]["path"] for probe in probes] == ["/readyz", "/readyz", "/healthz"]


def test_a_gpu(render, monkeypatch):
    manifests = render(*flags_of("gpu.yaml"))
    spec, container = pod_of(manifests)
    assert container["image"].startswith("convlens/server-gpu:")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert spec["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert [each["key"] for each in spec["tolerations"]] == ["nvidia.com/gpu", "dedicated"]
    assert settings_of(container, monkeypatch).device == "cuda"
    claim = only(manifests, "PersistentVolumeClaim", "lenses-convlens-models")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert spec["volumes"][1]["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
    assert container["volumeMounts"][1] == {"name": "models", "mountPath": "/models", "readOnly": True}


def test_replicas_follow_the_queue(render):
    manifests = render(*flags_of("everything.yaml"))
    assert "replicas" not in only(manifests, "Deployment")["spec"]
    scaler = only(manifests, "HorizontalPodAutoscaler")["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, 30)
    [metric] = scaler["metrics"]
    adapter = yaml.safe_load((CHART.parent / "prometheus-adapter.yaml").read_text())
    [rule] = adapter["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]


def test_the_network_is_closed_but_for_what_is_named(render):
    policy = only(render(), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert all(rule["from"] for rule in policy["ingress"])
    assert [port["port"] for rule in policy["egress"] for port in rule["ports"]] == [53, 53]

    policy = only(render(*flags_of("everything.yaml")), "NetworkPolicy")["spec"]
    # HTTP has no TLS: only who reads the metrics gets there.
    assert [[port["port"] for port in rule["ports"]] for rule in policy["ingress"]] == [["grpc"], ["http"]]
    ports = [port["port"] for rule in policy["egress"] for port in rule.get("ports", ())]
    assert ports == [53, 53, 443, 4317]
    assert policy["egress"][-1] == {"to": [{"ipBlock": {"cidr": "169.254.170.23/32"}}]}


def test_the_alerts_are_those_of_prometheus(render):
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())
    assert only(render(*flags_of("everything.yaml")), "PrometheusRule")["spec"] == rules
