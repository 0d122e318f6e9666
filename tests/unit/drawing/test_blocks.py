"""Blocks that can be folded, and where layers stand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convlens_server.catalogue import Layer
from convlens_server.drawing.blocks import find_blocks
from convlens_server.drawing.placement import columns, lanes


def layer(name: str, *inputs: str, kind: str = "", parameters: int | None = None) -> Layer:
    """A layer that has weights if its name says conv."""
    kind = kind or name.rpartition(".")[2].rstrip("0123456789_")
    weights = ("conv" in kind) if parameters is None else parameters
    operators = {"relu": "Relu", "add": "Add", "conv": "Conv"}
    return Layer(
        name,
        kind,
        operators.get(kind, kind),
        inputs,
        (1,),
        (),
        (),
        (),
        (),
        0,
        int(weights),
        0,
        (1, 1),
        (1, 1),
        (0, 0),
        name,
    )


def residual(prefix: str, source: str, separator: str = ".") -> list[Layer]:
    """Two convolutions and a shortcut."""
    names = [f"{prefix}{separator}{what}" for what in ("conv1", "relu1", "conv2", "add", "relu2")]
    kinds = ("conv", "relu", "conv", "add", "relu")
    sources = [(source,), *[(name,) for name in names[:-1]]]
    sources[3] = (names[2], source)
    return [layer(name, *inputs, kind=kind) for name, inputs, kind in zip(names, sources, kinds, strict=True)]


def shown(layers):
    return [(block.name, len(block.layers), block.parent) for block in find_blocks(layers)]


def test_a_chain_has_none():
    names = ["features.conv1", "features.relu1", "features.conv2", "features.relu2", "head.conv1", "head.conv2"]
    assert shown([layer(name, before) for before, name in zip(["input", *names], names, strict=False)]) == []


def test_residual_blocks_by_their_names_and_stages_of_them():
    layers = [layer("conv0", "input")]
    for stage in (1, 2):
        for block in (0, 1):
            layers += residual(f"layer{stage}.{block}", layers[-1].name)
    layers += [layer(f"head{n}", layers[-1].name if n == 0 else f"head{n - 1}") for n in range(3)]
    assert shown(layers) == [
        ("layer1", 10, ""), ("layer1.0", 5, "layer1"), ("layer1.1", 5, "layer1"),
        ("layer2", 10, ""), ("layer2.0", 5, "layer2"), ("layer2.1", 5, "layer2"),
    ]  # fmt: skip


def test_residual_blocks_by_the_way_they_are_joined():
    layers = [layer("conv0", "input")]
    for block in range(3):
        layers += [
            layer(f"x{block}_{n}_{what}", *inputs, kind=what)
            for n, (what, inputs) in enumerate(
                [
                    ("conv", (layers[-1].name,)),
                    ("relu", (f"x{block}_0_conv",)),
                    ("conv", (f"x{block}_1_relu",)),
                    ("add", (f"x{block}_2_conv", layers[-1].name)),
                    ("relu", (f"x{block}_3_add",)),
                ]
            )
        ]
    assert shown(layers) == [("x0", 5, ""), ("x1", 5, ""), ("x2", 5, "")]


def test_without_a_common_beginning_blocks_are_numbered():
    layers = [layer("first_conv", "input"), layer("a_conv", "first_conv"), layer("b_conv", "a_conv")]
    layers += [layer("c_conv", "b_conv"), layer("add", "c_conv", "first_conv"), layer("end_conv", "add")]
    layers += [layer(f"end{n}", "end_conv" if n == 0 else f"end{n - 1}") for n in range(3)]
    assert shown(layers) == [("block_1", 4, "")]


def test_a_chain_beside_blocks_is_one_too():
    layers = [layer("conv0", "input"), *residual("features.1", "conv0")]
    names = [f"features.2.{what}" for what in ("conv1", "relu1", "conv2", "relu2")]
    layers += [layer(name, before) for before, name in zip(["features.1.relu2", *names], names, strict=False)]
    layers += [layer("conv3", names[-1]), *residual("other", "conv3")]
    assert shown(layers) == [
        ("features", 9, ""),
        ("features.1", 5, "features"),
        ("features.2", 4, "features"),
        ("other", 5, ""),
    ]


def test_what_takes_several_layers_is_left_out_in_front():
    """As the dense layers of DenseNet, which begin with a concatenation."""
    layers = [layer("conv0", "input"), layer("conv00", "conv0")]
    made = ["conv00"]
    for n in range(3):
        prefix = f"dense.{n}"
        layers.append(layer(f"{prefix}.concat", *made, kind="concat", parameters=0))
        for what, before in (("conv1", "concat"), ("relu", "conv1"), ("conv2", "relu"), ("conv3", "conv2")):
            layers.append(layer(f"{prefix}.{what}", f"{prefix}.{before}"))
        made.append(f"{prefix}.conv3")
    layers += [layer("dense.concat", *made, kind="concat", parameters=0), layer("end_conv", "dense.concat")]
    blocks = find_blocks(layers)
    assert [(block.name, block.parent) for block in blocks] == [
        ("dense", ""), ("dense.0", "dense"), ("dense.1", "dense"), ("dense.2", "dense")
    ]  # fmt: skip
    assert blocks[2].layers == ("dense.1.conv1", "dense.1.relu", "dense.1.conv2", "dense.1.conv3")


@st.composite
def networks(draw):
    """Convolutions in sequences, with shortcuts and branches around sequences, and a few layers that take more."""
    layers: list[Layer] = []
    separator = draw(st.sampled_from([".", "/", "_"]))

    def add(prefix, *inputs):
        layers.append(layer(f"{prefix}{separator}conv{len(layers)}".lstrip(separator), *dict.fromkeys(inputs)))
        return layers[-1].name

    def sequence(source, prefix, depth):
        for n in range(draw(st.integers(1, 4))):
            inside = draw(st.sampled_from([f"{prefix}{separator}{n}", prefix]))
            what = draw(st.sampled_from(["layer", "layer", "shortcut", "branches"])) if depth < 3 else "layer"
            if what == "layer":
                source = add(prefix, source)
            elif what == "shortcut":
                source = add(inside, sequence(source, inside, depth + 1), source)
            else:
                source = add(inside, *[sequence(source, inside, depth + 1) for _ in range(draw(st.integers(2, 3)))])
        return source

    sequence("input", "", 0)
    for _ in range(draw(st.integers(0, 2))):
        n = draw(st.integers(0, len(layers) - 1))
        more = draw(st.sampled_from(["input", *(each.name for each in layers[:n])]))
        layers[n] = replace(layers[n], inputs=tuple(dict.fromkeys([*layers[n].inputs, more])))
    return layers


@given(networks())
def test_blocks_of_any_network_have_one_way_in_and_one_way_out_and_do_not_cross(layers):
    blocks = find_blocks(layers)
    by_name = {each.name: each for each in layers}
    consumers = {name: [each.name for each in layers if name in each.inputs] for name in ["input", *by_name]}
    order = {name: n for n, name in enumerate(by_name)}
    names = [block.name for block in blocks]
    assert len(set(names)) == len(names)
    assert names == [block.name for block in sorted(blocks, key=lambda b: (order[b.layers[0]], -len(b.layers)))]
    for block in blocks:
        members = set(block.layers)
        assert sorted(block.layers, key=order.__getitem__) == list(block.layers)
        assert len({source for name in block.layers for source in by_name[name].inputs} - members) == 1
        assert sum(not consumers[name] or not members.issuperset(consumers[name]) for name in block.layers) == 1
        around = [other for other in blocks if members < set(other.layers)]
        assert block.parent == (min(around, key=lambda b: len(b.layers)).name if around else "")
        for other in blocks:
            assert (
                other is block
                or members.isdisjoint(other.layers)
                or members < set(other.layers)
                or members > set(other.layers)
            )


@given(networks())
def test_every_layer_has_a_place_of_its_own_behind_what_it_takes(layers):
    inputs = {each.name: each.inputs for each in layers}
    placed = columns(inputs)
    given_lanes = lanes(inputs, placed)
    places = [(placed[name], given_lanes[name]) for name in inputs]
    assert len(set(places)) == len(places)
    for name, sources in inputs.items():
        assert placed[name] == 1 + max(placed[source] for source in sources)
    # The main way has a layer in each column up to the last layer's.
    last = layers[-1].name
    assert {placed[name] for name in inputs if given_lanes[name] == 0} == set(range(1, placed[last] + 1))


def test_a_branch_stays_in_its_lane():
    inputs = {
        "a": ("input",),
        "main1": ("a",), "main2": ("main1",), "main3": ("main2",),
        "side1": ("a",), "side2": ("side1",),
        "other": ("a",),
        "join": ("main3", "side2", "other"),
    }  # fmt: skip
    given_lanes = lanes(inputs, columns(inputs))
    assert given_lanes == {
        "a": 0, "main1": 0, "main2": 0, "main3": 0, "side1": 1, "side2": 1, "other": 2, "join": 0
    }  # fmt: skip


@pytest.mark.parametrize("inputs", [{}, {"only": ("input",)}, {"constant": ()}])
def test_small_graphs(inputs):
    placed = columns(inputs)
    assert lanes(inputs, placed) == dict.fromkeys(inputs, 0)
