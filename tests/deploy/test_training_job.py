from __future__ import annotations

import pytest
import yaml

from deploy.manifests import ROOT


@pytest.fixture
def manifests():
    return list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "training-job.yaml").read_text()))


def test_every_manifest_fits_its_schema(manifests, valid):
    assert valid(manifests, "1.30") == ""
    assert valid(manifests, "1.37") == ""


def test_the_pods_find_the_first(manifests):
    service, job = manifests
    pod = job["spec"]["template"]["spec"]
    flags = dict(flag.split("=", 1) for flag in pod["containers"][0]["args"] if "=" in flag)
    # The first pod of an Indexed Job has the host name <job>-0, in the domain of the service.
    assert flags["--master-addr"] == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert int(flags["--master-port"]) == service["spec"]["ports"][0]["port"]
    assert int(flags["--nnodes"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
