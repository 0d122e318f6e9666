"""GetGraph: a network as a graph to draw."""

from __future__ import annotations

import math
from collections.abc import Iterator

from convlens.v1 import convlens_pb2 as pb
from convlens_server.drawing.blocks import find_blocks
from convlens_server.drawing.connections import count_connections
from convlens_server.drawing.placement import columns, lanes
from convlens_server.model import Model
from convlens_server.naming import IMAGE
from convlens_server.transport.base import Call


def get_graph(model: Model, request: pb.GetGraphRequest, call: Call) -> Iterator[pb.GetGraphResponse]:
    """The answer to GetGraph."""
    catalogue = model.catalogue
    inputs = {layer.name: layer.inputs for layer in catalogue.layers}
    placed = columns(inputs)
    given = lanes(inputs, placed)
    units = {IMAGE: math.prod(model.shape)} | {layer.name: math.prod(layer.shape) for layer in catalogue.layers}
    response = pb.GetGraphResponse(columns=max(placed.values()) + 1, model=model.name, version=model.version)
    for layer, message in zip(catalogue.layers, model.layer_messages, strict=True):
        input_units = sum(units[source] for source in layer.inputs)
        response.layers.add(
            layer=message,
            column=placed[layer.name],
            lane=given[layer.name],
            units=units[layer.name],
            input_units=input_units,
            connections=count_connections(catalogue.anatomy, layer, input_units),
            dense_connections=input_units * units[layer.name],
        )
        for source in layer.inputs:
            response.edges.add(source=source, target=layer.name)
    for block in find_blocks(catalogue.layers):
        response.blocks.add(name=block.name, layers=block.layers, parent=block.parent)
    yield response
