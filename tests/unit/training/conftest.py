from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from convlens.manifest import ImageInput
from convlens_training.datasets import Dataset, Split


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two OpenMP threads on a busy machine spin."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of small random images: {"train/cat": 3, …} gives three PNG files in train/cat."""

    def image_folder(counts: Mapping[str, int], name: str = "animals") -> Path:
        random = np.random.default_rng(0)
        for folder, count in counts.items():
            (tmp_path / name / folder).mkdir(parents=True)
            for n in range(count):
                pixels = random.integers(0, 256, (9, 7, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / folder / f"{n}.png")
        return tmp_path / name

    return image_folder


@pytest.fixture(scope="session")
def digits_input() -> ImageInput:
    return ImageInput(28, 28, 1, mean=(0.13,), std=(0.31,), in_graph=True)


@pytest.fixture(scope="session")
def small_model() -> onnx.ModelProto:
    """In the form of our exports, 8 × 8 RGB and four classes, with what torchvision's networks have.

    That is a sum of two ways, a convolution without an activation, a hard swish, an average, and a matrix product to
    which a bias is added.
    """
    random = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array((random.standard_normal(shape) * 0.3).astype(np.float32), name)

    node = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            node("Transpose", ["image"], ["preprocess/transpose"], "preprocess/transpose", perm=[0, 3, 1, 2]),
            node("Cast", ["preprocess/transpose"], ["preprocess/cast"], "preprocess/cast", to=onnx.TensorProto.FLOAT),
            node("Mul", ["preprocess/cast", "factor"], ["preprocess/scale"], "preprocess/scale"),
            node("Conv", ["preprocess/scale", "stem.weight"], ["stem"], "stem", pads=[1] * 4),
            node("HardSwish", ["stem"], ["swish"], "swish"),
            node("Conv", ["swish", "way.weight"], ["way"], "way", pads=[1] * 4),
            node("Add", ["way", "swish"], ["add"], "add"),
            node("Relu", ["add"], ["relu"], "relu"),
            node("ReduceMean", ["relu", "axes"], ["mean"], "mean", keepdims=0),
            node("MatMul", ["mean", "hidden.weight"], ["hidden"], "hidden"),
            node("Add", ["hidden", "hidden.bias"], ["hidden.add"], "hidden.add"),
            node("Relu", ["hidden.add"], ["relu_2"], "relu_2"),
            node("Gemm", ["relu_2", "output.weight", "output.bias"], ["output"], "output", transB=1),
            node("Softmax", ["output"], ["scores"], "softmax", axis=1),
        ],
        "network",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["batch", 8, 8, 3])],
        [onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["batch", 4])],
        [
            onnx.numpy_helper.from_array(np.float32(1 / 64), "factor"),
            weights("stem.weight", 6, 3, 3, 3),
            weights("way.weight", 6, 6, 3, 3),
            weights("hidden.weight", 6, 5),
            weights("hidden.bias", 5),
            weights("output.weight", 4, 5),
            weights("output.bias", 4),
            onnx.numpy_helper.from_array(np.array([2, 3]), "axes"),
        ],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


@pytest.fixture(scope="session")
def colours() -> Dataset:
    """Images of 64 × 64 pixels in one of three colours, with noise: easy to learn."""
    random = np.random.default_rng(1)

    def split(count: int) -> Split:
        labels = np.arange(count) % 3
        images = random.integers(0, 120, (count, 64, 64, 3))
        images[np.arange(count), :, :, labels] += 100
        return Split(images.astype(np.uint8), labels)

    return Dataset("colours", ("red", "green", "blue"), split(96), split(30))
