"""docker-compose.yml and what it mounts, as far as no Docker engine is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] in ("on-failure:5", "no")
    for port in service.get("ports", []):
        # This machine alone, unless it is asked for more.
        assert port.startswith("${BIND:-127.0.0.1}:")


@pytest.mark.parametrize("name", [name for name in SERVICES if not name.startswith("server")])
def test_what_is_mounted_is_there(name):
    for volume in SERVICES[name].get("volumes", []):
        if volume.startswith("./"):
            assert (ROOT / volume.split(":")[0]).exists(), volume


def test_the_server_is_given_longer_than_it_drains():
    environment = SERVICES["server"]["environment"]
    patience = int(SERVICES["server"]["stop_grace_period"].removesuffix("s"))
    assert patience > int(environment["CONVLENS_DRAIN_DELAY"]) + int(environment["CONVLENS_DRAIN_TIMEOUT"])


def test_envoy_notices_that_a_server_ends_before_it_drains():
    envoy = yaml.safe_load((ROOT / "deploy" / "envoy" / "envoy.yaml").read_text())
    delay = float(SERVICES["server"]["environment"]["CONVLENS_DRAIN_DELAY"])
    checks = [check for cluster in envoy["static_resources"]["clusters"] for check in cluster.get("health_checks", [])]
    assert len(checks) == 2
    for check in checks:
        interval = float(check["interval"].removesuffix("s"))
        assert check["unhealthy_threshold"] * interval < delay


def test_envoy_asks_a_new_server_within_five_seconds():
    """The next look at the names, one health check, and as much again for what lies between."""
    envoy = yaml.safe_load((ROOT / "deploy" / "envoy" / "envoy.yaml").read_text())
    for cluster in envoy["static_resources"]["clusters"]:
        if cluster["name"] in ("grpc", "http"):
            refresh = cluster["cluster_type"]["typed_config"]["dns_refresh_rate"]
            [check] = cluster["health_checks"]
            assert check["healthy_threshold"] == 1
            seconds = sum(float(each.removesuffix("s")) for each in (refresh, check["interval"]))
            assert 2 * seconds < 5


def test_tls_is_all_that_is_different():
    plain, tls = ((ROOT / "deploy" / "envoy" / f"{name}.yaml").read_text() for name in ("plain", "tls"))
    # As start.sh joins them.
    joined = yaml.safe_load(plain + tls)
    [chain] = joined["static_resources"]["listeners"][0]["filter_chains"]
    assert chain.pop("transport_socket")["name"] == "tls"
    assert joined == yaml.safe_load(plain)


def test_the_collector_sends_to_the_jaeger_of_the_profile():
    collector = yaml.safe_load((ROOT / "deploy" / "otel" / "collector.yaml").read_text())
    [pipeline] = collector["service"]["pipelines"].values()
    for kind in ("receivers", "processors", "exporters"):
        assert set(pipeline[kind]) == set(collector[kind])
    [exporter] = collector["exporters"].values()
    assert exporter["endpoint"].split(":")[0] in SERVICES
    assert SERVICES["jaeger"]["profiles"] == SERVICES["otel-collector"]["profiles"] == ["trace"]
