"""Holds manifests against strict schemas; run by the Python of .venv-kubernetes, which scripts/kubernetes-tools makes.

kubernetes_schemas.py VERSION < manifests.json     # prints a line for each fault

Kubernetes' own kinds are held against its schemas of that version, with no field that they do not name; those of the
Prometheus operator against cloudcoil's models, which drop what they do not name: so nothing may be lost.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pydantic

_OPERATOR = "monitoring.coreos.com/"


def faults(manifest: dict[str, Any], version: str) -> Iterator[str]:
    """What is wrong with a manifest."""
    name = f"{manifest['kind']} {manifest['metadata']['name']}"
    api = manifest["apiVersion"]
    if api.startswith(_OPERATOR):
        module = importlib.import_module(f"cloudcoil.models.prometheus_operator.{api.removeprefix(_OPERATOR)}")
        try:
            parsed = getattr(module, manifest["kind"]).model_validate(manifest)
        except pydantic.ValidationError as error:
            yield f"{name}: {error}"
        else:
            kept = parsed.model_dump(mode="json", by_alias=True, exclude_unset=True)
            yield from (f"{name}: {each} is no field of it" for each in _lost(manifest, kept, ""))
        return
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        yield f"{name}, in Kubernetes {version}: {error.message}"


def _lost(given: Any, kept: Any, path: str) -> Iterator[str]:
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key in kept:
                yield from _lost(value, kept[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(given, list) and isinstance(kept, list):
        for n, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from _lost(one, other, f"{path}[{n}]")


if __name__ == "__main__":
    found = [fault for manifest in json.load(sys.stdin) for fault in faults(manifest, sys.argv[1])]
    print("\n".join(found), end="")
