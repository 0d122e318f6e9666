"""Holds manifests against the types of KServe; run by the Python of .venv-clients, which scripts/clients makes.

kserve_types.py < manifests.json     # prints a line for each fault

The kserve package has a class for each type, made from KServe's own OpenAPI document, with the names and types of its
fields; those of Kubernetes come from the kubernetes package. A field that no class names is a fault.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import kserve
import kserve.models
import kubernetes.client

_PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object}


def faults(value: Any, kind: str, path: str) -> Iterator[str]:
    """What is wrong with a value that should be of a type, written as OpenAPI's generator writes it."""
    if listed := re.fullmatch(r"[lL]ist\[(.+)\]", kind):
        if not isinstance(value, list):
            yield f"{path} is no list"
            return
        for n, each in enumerate(value):
            yield from faults(each, listed[1], f"{path}[{n}]")
    elif mapped := re.fullmatch(r"(?:dict\(|Dict\[)str, (.+)[)\]]", kind):
        if not isinstance(value, dict):
            yield f"{path} is no mapping"
            return
        for key, each in value.items():
            yield from faults(each, mapped[1], f"{path}.{key}")
    elif kind in ("ResourceQuantity", "IntOrString", "object"):
        # Quantities, and ports by number or name.
        if kind != "object" and not isinstance(value, str | int):
            yield f"{path} is neither a text nor a number"
    elif kind in _PLAIN:
        if not isinstance(value, _PLAIN[kind]) or (kind == "int" and isinstance(value, bool)):
            yield f"{path} is {value!r}, but must be of type {kind}"
    else:
        yield from _object(value, kind, path)


def _object(value: Any, kind: str, path: str) -> Iterator[str]:
    model = _class(kind)
    if not isinstance(value, dict):
        yield f"{path} is no mapping"
        return
    fields = {given: name for name, given in model.attribute_map.items()}
    for key, each in value.items():
        if key not in fields:
            yield f"{path}.{key} is no field of {kind}"
        else:
            yield from faults(each, model.openapi_types[fields[key]], f"{path}.{key}")
    try:
        # Refuses what is missing, and what is not among a field's words.
        model(**{fields[key]: each for key, each in value.items() if key in fields})
    except ValueError as error:
        yield f"{path}: {error}"


def _class(kind: str) -> Any:
    for module in (kserve.models, kserve, kubernetes.client):
        if hasattr(module, kind):
            return getattr(module, kind)
    raise SystemExit(f"neither kserve nor kubernetes has the type {kind}")


if __name__ == "__main__":
    found = []
    for manifest in json.load(sys.stdin):
        group, version = manifest["apiVersion"].split("/")
        assert group == "serving.kserve.io", group
        kind = version[0].upper() + version[1:] + manifest["kind"]
        found += faults(manifest, kind, f"{manifest['kind']} {manifest['metadata']['name']}")
    print("\n".join(found), end="")
