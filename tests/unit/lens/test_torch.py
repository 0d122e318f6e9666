"""Networks that torch exported, by either of its exporters: every layer's maps equal what torch computes."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def recorded(module: nn.Module, inputs: torch.Tensor) -> dict[str, list[np.ndarray]]:
    """What each leaf of a module gives, by its name, one array for each time it is called."""
    outputs = defaultdict(list)
    hooks = [
        leaf.register_forward_hook(
            lambda _, __, output, name=name: outputs[name].append(output.detach().clone().numpy())
        )
        for name, leaf in module.named_modules()
        if not list(leaf.children())
    ]
    with torch.no_grad():
        outputs["logits"].append(module(inputs).numpy())
    for hook in hooks:
        hook.remove()
    return outputs


def pixels(opened, count=2):
    """Images as the server takes them, and as torch does."""
    images, image = opened.images(count), opened.network.manifest.input
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor(image.mean or [0.0] * image.channels)[:, None, None]
    std = torch.tensor(image.std or [1.0] * image.channels)[:, None, None]
    return images, (values - mean) / std


def assert_close(own, theirs, name):
    np.testing.assert_allclose(own, theirs, atol=1e-4, rtol=1e-4, err_msg=name)


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(1)
    network = torchvision.models.resnet18(weights=None).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            # As trained: not what leaves its input as it is.
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return network


@pytest.mark.parametrize("dynamo", [True, False])
def test_resnet18(resnet18, tmp_path, export, open_file, dynamo):
    path = tmp_path / "1" / "model.onnx"
    export(resnet18, torch.randn(2, 3, 96, 96), path, dynamo)
    labels = '"' + '","'.join(str(n) for n in range(1000)) + '"'
    size = f'"height": 96, "width": 96, "channels": 3, "mean": {list(IMAGENET["mean"])}, "std": {list(IMAGENET["std"])}'
    path.with_name("manifest.json").write_text(f'{{"labels": [{labels}], "input": {{{size}}}}}')
    opened = open_file(path)
    catalogue = opened.catalogue

    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    expected = ["conv1", "relu", "maxpool"]
    for block in blocks:
        expected += [f"{block}.{name}" for name in ("conv1", "relu", "conv2", "add", "relu_1")]
        if block.endswith("0") and block != "layer1.0":
            expected.append(f"{block}.downsample.0")
    expected += ["avgpool", "flatten", "fc", "softmax"]
    assert set(catalogue.names) == set(expected)
    assert len(catalogue.layers) == len(expected) == 50
    kinds = Counter(layer.kind for layer in catalogue.layers)
    once = dict.fromkeys(("max_pool", "global_average_pool", "flatten", "dense", "softmax"), 1)
    assert kinds == {"conv": 20, "relu": 17, "add": 8, **once}
    # Every batch normalisation (4,800 pairs of values) is folded into its convolution, which gains the bias.
    assert catalogue.parameters == sum(p.numel() for p in resnet18.parameters()) - 4_800
    assert set(catalogue["layer2.0.add"].inputs) == {"layer2.0.conv2", "layer2.0.downsample.0"}
    assert catalogue["layer4.1.conv2"].receptive_field == (435, 435)
    assert catalogue["layer4.1.conv2"].receptive_field_stride == (32, 32)

    added, hooks = {}, []
    for block in blocks:
        # The second rectifier changes its input in place: what is added must be copied before.
        def keep(_, x, name=block):
            added[name] = x[0].detach().clone().numpy()

        hooks.append(resnet18.get_submodule(block).relu.register_forward_pre_hook(keep))
    images, inputs = pixels(opened)
    outputs = recorded(resnet18, inputs)
    for hook in hooks:
        hook.remove()
    folded = {"conv1": "bn1", "conv2": "bn2", "0": "1"}
    for layer, maps in zip(catalogue.layers, opened.lens.maps(images, catalogue.layers), strict=True):
        parent, dot, leaf = layer.name.rpartition(".")
        if leaf == "softmax":
            theirs = torch.softmax(torch.from_numpy(outputs["logits"][0]), 1).numpy()
        elif leaf == "flatten":
            theirs = outputs["avgpool"][0].reshape(2, -1)
        elif leaf == "add":
            theirs = added[parent]
        elif layer.kind == "conv":
            theirs = outputs[parent + dot + folded[leaf]][0]
        else:
            name, _, call = layer.name.partition("_")
            theirs = outputs[name][int(call or 0)]
        assert maps.shape == theirs.shape == (2, *layer.shape)
        assert_close(maps, theirs, layer.name)
    assert_close(opened.classify(images)[1], outputs["logits"][0], "logits")


@st.composite
def chains(draw):
    """A random chain of convolutions, poolings, activations and normalisations, then a head."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    channels = draw(st.sampled_from([1, 3]))
    height, width = draw(st.integers(9, 16)), draw(st.integers(9, 16))
    modules, x = [], torch.zeros(1, channels, height, width)
    for _ in range(draw(st.integers(1, 4))):
        groups = draw(st.sampled_from([1, x.shape[1]]))
        kernel = [draw(st.integers(1, 3)), draw(st.integers(1, 3))]
        conv = nn.Conv2d(
            x.shape[1],
            groups * draw(st.integers(1, 4)),
            kernel,
            stride=[draw(st.integers(1, 2)), draw(st.integers(1, 2))],
            padding=[draw(st.integers(0, size)) for size in kernel],
            dilation=[draw(st.integers(1, 2)), draw(st.integers(1, 2))],
            groups=groups,
            bias=draw(st.booleans()),
        )
        behind = draw(
            st.sampled_from(
                [
                    [nn.ReLU()],
                    [nn.BatchNorm2d(conv.out_channels), nn.ReLU6()],
                    [nn.MaxPool2d(2, ceil_mode=draw(st.booleans()))],
                    [nn.AvgPool2d(3, stride=1, padding=1), nn.Tanh()],
                    [nn.LeakyReLU(0.1), nn.BatchNorm2d(conv.out_channels)],
                    [nn.PReLU(conv.out_channels)],
                ]
            )
        )
        try:
            x = nn.Sequential(conv, *behind).eval()(x)
        except RuntimeError:  # The window no longer fits.
            break
        modules += [conv, *behind]
    modules += [nn.AdaptiveAvgPool2d(1)] if draw(st.booleans()) else []
    x = nn.Sequential(*modules).eval()(torch.zeros(1, channels, height, width))
    modules += [nn.Flatten(), nn.Linear(x[0].numel(), 5)]
    network = nn.Sequential(*modules).eval()
    for module in network:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network, (channels, height, width)


def check_chain(network, size, path, export, open_file, dynamo):
    export(network, torch.randn(2, *size), path, dynamo)
    opened = open_file(path)
    images, inputs = pixels(opened, 3)
    outputs = recorded(network, inputs)
    names = list(opened.catalogue.names)
    assert names[-1] == "softmax"
    trained = 0
    for layer, maps in zip(
        opened.catalogue.layers[:-1], opened.lens.maps(images, opened.catalogue.layers[:-1]), strict=True
    ):
        index = int(layer.name)
        module = network[index]
        trained += sum(p.numel() for p in module.parameters())
        if str(index + 1) not in names and index + 1 < len(network):  # Its batch normalisation is folded into it.
            assert isinstance(network[index + 1], nn.BatchNorm2d)
            index += 1
            trained += network[index].bias.numel() if module.bias is None else 0
        theirs = outputs[str(index)][0]
        assert maps.shape == theirs.shape == (3, *layer.shape)
        assert_close(maps, theirs, layer.name)
        if layer.kind == "conv":
            assert (layer.kernel, layer.stride, layer.dilation) == (module.kernel_size, module.stride, module.dilation)
            assert layer.padding == module.padding * 2
            assert layer.groups == module.groups
            assert layer.multiply_accumulates == module.weight.numel() * layer.shape[1] * layer.shape[2]
    assert opened.catalogue.parameters == trained
    assert_close(opened.classify(images)[1], outputs["logits"][0], "logits")


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(chain=chains())
def test_random_chains(chain, tmp_path, export, open_file):
    check_chain(*chain, tmp_path / "1" / "model.onnx", export, open_file, dynamo=False)


def test_a_chain_by_the_newer_exporter(tmp_path, export, open_file):
    torch.manual_seed(2)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=(1, 0), groups=3, dilation=(1, 2)),
        nn.ReLU(),
        nn.Conv2d(6, 4, 2),
        nn.BatchNorm2d(4),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 5),
    ).eval()
    nn.init.uniform_(network[3].running_mean, -0.2, 0.2)
    check_chain(network, (3, 13, 17), tmp_path / "1" / "model.onnx", export, open_file, dynamo=True)


class Fire(nn.Module):
    """Branches that meet again, as in SqueezeNet and GoogLeNet, and a gate, as in MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(3, 4, 1)
        self.narrow = nn.Conv2d(4, 5, 1)
        self.wide = nn.Conv2d(4, 6, 3, padding=1)
        self.activation = nn.SiLU()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(11, 11, 1), nn.Hardsigmoid())
        self.classifier = nn.Linear(11, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.squeeze(x))
        x = self.activation(torch.cat([self.narrow(x), self.wide(x)], 1))
        return self.classifier((x * self.gate(x)).mean((2, 3)))


@pytest.mark.parametrize("dynamo", [True, False])
def test_branches_and_names(tmp_path, export, open_file, dynamo):
    torch.manual_seed(3)
    network = Fire().eval()
    path = tmp_path / "1" / "model.onnx"
    export(network, torch.randn(2, 3, 10, 12), path, dynamo)
    opened = open_file(path)
    expected = {
        "squeeze": ("conv", ("input",)),
        "relu": ("relu", ("squeeze",)),
        "narrow": ("conv", ("relu",)),
        "wide": ("conv", ("relu",)),
        "concat": ("concat", ("narrow", "wide")),
        "activation.sigmoid": ("sigmoid", ("concat",)),
        "activation.mul": ("mul", ("concat", "activation.sigmoid")),
        "gate.0": ("global_average_pool", ("activation.mul",)),
        "gate.1": ("conv", ("gate.0",)),
        "gate.2": ("hard_sigmoid", ("gate.1",)),
        "mul": ("mul", ("activation.mul", "gate.2")),
        "global_average_pool": ("global_average_pool", ("mul",)),
        "classifier": ("dense", ("global_average_pool",)),
        "softmax": ("softmax", ("classifier",)),
    }
    assert {layer.name: (layer.kind, layer.inputs) for layer in opened.catalogue.layers} == expected
    assert opened.catalogue["concat"].receptive_field == (3, 3)
    images, inputs = pixels(opened)
    outputs = recorded(network, inputs)
    renamed = {"activation.mul": "activation"}
    for layer, maps in zip(opened.catalogue.layers, opened.lens.maps(images, opened.catalogue.layers), strict=True):
        theirs = outputs.get(renamed.get(layer.name, layer.name))
        if theirs is not None:
            assert_close(maps, theirs[0], layer.name)


# The number of layers with trained values: convolutions, dense layers, and normalisations that cannot be folded.
@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("squeezenet1_1", 26),
        ("mobilenet_v3_small", 54),
        ("shufflenet_v2_x0_5", 57),
        ("googlenet", 58),
        ("densenet121", 121 + 62),
        ("convnext_tiny", 22 + 23 + 37 + 18),
    ],
)
def test_catalogues_of_torchvision_networks(tmp_path, export, open_file, name, trained):
    extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, weights=None, num_classes=7, **extra).eval()
    path = tmp_path / "1" / "model.onnx"
    export(network, torch.randn(1, 3, 64, 64), path, dynamo=False)
    opened = open_file(path)
    layers = opened.catalogue.layers
    assert sum(layer.parameters > 0 for layer in layers) == trained
    assert len({layer.name for layer in layers}) == len(layers)
    before = {"input"}
    for layer in layers:
        assert layer.inputs
        assert before.issuperset(layer.inputs)
        assert min(layer.shape) > 0
        before.add(layer.name)
    images, inputs = pixels(opened, 2)
    for layer, maps in zip(layers, opened.lens.maps(images, layers), strict=True):
        assert maps.shape == (2, *layer.shape)
    with torch.no_grad():
        assert_close(opened.classify(images)[1], network(inputs).numpy(), name)
