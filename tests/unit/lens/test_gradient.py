"""Gradients formed by graph surgery equal torch's."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx import TensorProto
from torch import nn
from torch.nn import functional

from convlens_server.attribution.gradient import Gradients
from convlens_server.errors import NotApplicable


@pytest.fixture
def gradients(tmp_path, export, open_file):
    """Compares the gradient of a class's logit with respect to what a module gives, in torch and by ours."""

    def compare(network, module, shape, *, dynamo=False, layer=""):
        path = tmp_path / "1" / "model.onnx"
        export(network, torch.randn(1, *shape), path, dynamo)
        opened = open_file(path)
        name = layer or next(name for name, each in network.named_modules() if each is module)
        image = opened.images(1)
        kept = []

        def keep(_, __, output):
            output.retain_grad()
            kept.append(output)

        with module.register_forward_hook(keep):
            logits = network(torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255)
        classes = logits.shape[1]
        engine = Gradients(opened.network, opened.catalogue, opened.make_session)
        for class_index in (0, classes - 1):
            kept[0].grad = None
            logits[0, class_index].backward(retain_graph=True)
            maps, ours = engine.of(opened.catalogue[name], image[0], class_index)
            theirs = kept[0].grad[0].numpy()
            assert np.abs(theirs).max() > 0
            np.testing.assert_allclose(maps, kept[0][0].detach().numpy(), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5 * np.abs(theirs).max())
        return opened

    return compare


def tiny_vgg() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(5, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4 * 5 * 4, 7),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("index", [0, 3, 7, 8])
def test_tiny_vgg(gradients, index, dynamo):
    network = tiny_vgg()
    layer = {0: "conv_1", 3: "relu_2"}.get(index, "") if dynamo else ""
    gradients(network, network[index], (3, 32, 28), dynamo=dynamo, layer=layer and str(index))


class Block(nn.Module):
    """A residual block with stride, batch normalisation and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.conv = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.shortcut = nn.Conv2d(8, 8, 1, stride=2)
        self.after = nn.ReLU()
        self.output = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.first(x))
        x = self.after(self.norm(self.conv(x)) + self.shortcut(x))
        return self.output(x.mean((2, 3)))


def test_residual_block(gradients):
    torch.manual_seed(1)
    network = Block().eval()
    gradients(network, network.first, (3, 17, 22), layer="first.0")


def test_a_fixed_batch(builder, serve):
    build = builder([3, 3, 8, 8])
    conv = build.node("Conv", "x", build.weights(4, 3, 3, 3), name="conv")
    relu = build.node("Relu", conv, name="relu")
    flat = build.node("Reshape", relu, build.constant([3, 144], np.int64))
    weights = build.weights(144, 2)
    opened = serve(build.model(build.node("MatMul", flat, weights), shape=[3, 2]))
    assert opened.network.fixed_batch == 3
    engine = Gradients(opened.network, opened.catalogue, opened.make_session)
    image = opened.images(1)
    maps, gradients = engine.of(opened.catalogue["conv"], image[0], 1)
    np.testing.assert_allclose(maps, opened.maps(image, "conv")[0][0], rtol=1e-6)
    column = onnx.numpy_helper.to_array(build.initializers[-1])[:, 1].reshape(4, 6, 6)
    np.testing.assert_allclose(gradients, np.where(maps > 0, column, 0), rtol=1e-6)


class Tail(nn.Module):
    """A convolution, and anything behind it."""

    def __init__(self, tail: nn.Module, channels: int = 4, size: int = 0) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv = nn.Conv2d(3, channels, 3)
        self.tail = tail
        with torch.no_grad():
            size = tail(torch.zeros(1, channels, 11, 14)).flatten(1).shape[1]
        self.output = nn.Linear(size, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.tail(self.conv(x)).flatten(1))


class Of(nn.Module):
    """A module of a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


TAILS = {
    "max pool, overlapping": lambda: nn.MaxPool2d(3, stride=2, padding=1),
    "max pool, ceil": lambda: nn.MaxPool2d(3, stride=2, ceil_mode=True),
    "max pool, dilated": lambda: nn.MaxPool2d(2, stride=1, dilation=2),
    "average pool": lambda: nn.AvgPool2d(3, stride=2, padding=1),
    "average pool, padding not counted": lambda: nn.AvgPool2d((2, 3), (1, 3), padding=1, count_include_pad=False),
    "global average pool": lambda: nn.AdaptiveAvgPool2d(1),
    "global max pool": lambda: nn.AdaptiveMaxPool2d(1),
    "convolution, stride over the edge": lambda: nn.Conv2d(4, 5, 3, stride=(3, 4)),
    "convolution, dilated": lambda: nn.Conv2d(4, 6, 3, padding=(2, 1), dilation=2, groups=2),
    "pointwise, stride": lambda: nn.Conv2d(4, 6, 1, stride=2, padding=0),
    "relu6": lambda: nn.ReLU6(),
    "leaky relu": lambda: nn.LeakyReLU(0.2),
    "prelu": lambda: nn.PReLU(4),
    "elu": lambda: nn.ELU(0.7),
    "sigmoid": lambda: nn.Sigmoid(),
    "tanh": lambda: nn.Tanh(),
    "silu": lambda: nn.SiLU(),
    "gelu": lambda: nn.GELU(),
    "hard swish": lambda: nn.Hardswish(),
    "hard sigmoid": lambda: nn.Hardsigmoid(),
    "softplus-like": lambda: Of(lambda x: torch.log(1 + torch.exp(x))),
    "root": lambda: Of(lambda x: torch.sqrt(x * x + 0.5)),
    "power": lambda: Of(lambda x: (x + 3) ** 3),
    "quotient": lambda: Of(lambda x: x[:, :1] / (2 + x[:, 1:].sigmoid())),
    "difference": lambda: Of(lambda x: x[:, :2] - x.mean((2, 3), keepdim=True)[:, 2:]),
    "split and concat": lambda: Of(
        lambda x: torch.cat([part * (n + 1) for n, part in enumerate(x.chunk(2, 1))][::-1], 1)
    ),
    "shuffle": lambda: Of(lambda x: x.reshape(-1, 2, 2, 11, 14).transpose(1, 2).reshape(-1, 4, 11, 14)),
    "slice and pad": lambda: Of(lambda x: functional.pad(x[:, 1:3, 2:, :-1], (1, 0, 2, 3))),
    "layer norm": lambda: Of(
        lambda x: functional.layer_norm(x.permute(0, 2, 3, 1), (4,), torch.arange(4.0), torch.ones(4))
    ),
    "attention": lambda: Of(
        lambda x: (x.flatten(2).transpose(1, 2) @ x.flatten(2)).softmax(-1) @ x.flatten(2).transpose(1, 2)
    ),
    "one place": lambda: Of(lambda x: x[:, :, -3] + x[:, :, 2]),
    "log softmax": lambda: nn.LogSoftmax(1),
    "gate": lambda: Of(lambda x: x * functional.hardsigmoid(x.mean((2, 3), keepdim=True))),
}  # fmt: skip


@pytest.mark.parametrize("name", TAILS)
def test_operators(gradients, name):
    network = Tail(TAILS[name]()).eval()
    gradients(network, network.conv, (3, 13, 16), layer="conv")


# The default layers' gradients, through all that is behind early ones.
@pytest.mark.parametrize(
    ("name", "module", "layer"),
    [
        ("resnet18", "layer2.0.relu", "layer2.0.relu"),
        ("mobilenet_v3_small", "features.4", "features.4.block.3.0"),
        ("densenet121", "features.pool0", "features.pool0"),
        ("efficientnet_b0", "features.2", "features.2.1.add"),
        ("squeezenet1_1", "features.3.expand3x3", "features.3.expand3x3"),
        ("shufflenet_v2_x0_5", "maxpool", "maxpool"),
        ("googlenet", "maxpool2", "maxpool2"),
        ("convnext_tiny", "features.2", "features.2.1"),
    ],
)
def test_torchvision(gradients, name, module, layer):
    torch.manual_seed(3)
    extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, weights=None, num_classes=7, **extra).eval()
    for each in network.modules():
        if isinstance(each, nn.BatchNorm2d):
            nn.init.uniform_(each.running_var, 0.5, 1.5)
        if isinstance(each, nn.ReLU | nn.Hardswish | nn.SiLU):
            each.inplace = False
    gradients(network, network.get_submodule(module), (3, 64, 64), layer=layer)


def test_a_vision_transformer(gradients):
    """Of no use for Grad-CAM, but attention is nothing that stops it."""
    torch.manual_seed(4)
    network = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5).eval()
    nn.init.normal_(network.heads.head.weight)
    gradients(network, network.conv_proj, (3, 32, 32), layer="conv_proj")


def test_an_operator_without_a_rule_is_named(builder, serve):
    build = builder(["N", 3, 8, 8])
    conv = build.node("Conv", "x", build.weights(4, 3, 3, 3), name="conv")
    opened = serve(build.model(build.head(build.node("Floor", conv), 4 * 6 * 6), shape=["N", 2]))
    engine = Gradients(opened.network, opened.catalogue, opened.make_session)
    with pytest.raises(NotApplicable, match=r"Floor.*Score-CAM, Eigen-CAM or occlusion") as caught:
        engine.of(opened.catalogue["conv"], opened.images(1)[0], 0)
    assert caught.value.reason == "NO_GRADIENT"
    assert caught.value.metadata == {"layer": "conv", "operator": "Floor"}


def test_max_pooling_whose_indices_go_column_by_column(builder, serve):
    build = builder(["N", 3, 8, 8])
    conv = build.node("Conv", "x", build.weights(4, 3, 3, 3), name="conv")
    pooled = build.node("MaxPool", conv, kernel_shape=[2, 2], strides=[2, 2], storage_order=1)
    opened = serve(build.model(build.head(pooled, 4 * 3 * 3), shape=["N", 2]))
    engine = Gradients(opened.network, opened.catalogue, opened.make_session)
    with pytest.raises(NotApplicable, match="MaxPool whose indices go column by column"):
        engine.of(opened.catalogue["conv"], opened.images(1)[0], 0)


def test_a_layer_beside_the_way(builder, serve):
    build = builder(["N", 3, 8, 8])
    conv = build.node("Conv", "x", build.weights(4, 3, 3, 3), name="conv")
    build.node("Relu", conv, name="unused")
    opened = serve(build.model(build.head(conv, 4 * 6 * 6), shape=["N", 2]))
    engine = Gradients(opened.network, opened.catalogue, opened.make_session)
    softmax = opened.catalogue["softmax"]
    with pytest.raises(NotApplicable, match="'softmax', so it has no gradient"):
        engine.of(softmax, opened.images(1)[0], 0)


def test_half_precision_and_old_operators(builder, serve):
    """Values are of float16, axes are attributes: the gradient's graph has a number format and operators of its own."""
    build = builder(["N", 3, 9, 9], TensorProto.FLOAT16, opset=11, ir=6)
    conv = build.node("Conv", "x", build.weights(4, 3, 3, 3, dtype=np.float16), name="conv")
    clipped = build.node("Clip", conv, build.constant(0, np.float16), build.constant(0.3, np.float16))
    pooled = build.node("ReduceMean", clipped, axes=[2], keepdims=0)
    opened = serve(
        build.model(build.head(pooled, 4 * 7, dtype=np.float16), shape=["N", 2], elem_type=TensorProto.FLOAT16)
    )
    engine = Gradients(opened.network, opened.catalogue, opened.make_session)
    maps, gradients = engine.of(opened.catalogue["conv"], opened.images(1)[0], 1)
    weights = next(each for each in opened.network.model.graph.initializer if each.dims == [28, 2])
    column = onnx.numpy_helper.to_array(weights)[:, 1].astype(np.float32).reshape(4, 1, 7)
    inside = (maps > 0) & (maps < np.float32(np.float16(0.3)))
    np.testing.assert_allclose(gradients, inside * column / 7, rtol=1e-6)
    assert maps.dtype == gradients.dtype == np.float32


def test_sessions_are_kept_and_let_go(builder, serve):
    build = builder(["N", 3, 8, 8])
    conv = build.node("Conv", "x", build.weights(4, 3, 3, 3), name="conv")
    relu = build.node("Relu", conv, name="relu")
    opened = serve(build.model(build.head(relu, 4 * 6 * 6), shape=["N", 2]))
    engine = Gradients(opened.network, opened.catalogue, opened.make_session, cache_size=1)
    image, before = opened.images(1)[0], opened.sessions_made
    for name, made in (("conv", 2), ("conv", 2), ("relu", 4), ("conv", 6)):
        engine.of(opened.catalogue[name], image, 0)
        assert opened.sessions_made - before == made
