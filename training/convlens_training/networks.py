"""The networks, as torch modules from uint8 images to scores."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from convlens.manifest import ImageInput
from convlens_training import architectures
from convlens_training.architectures.from_torchvision import current_name
from convlens_training.architectures.network import BODY
from convlens_training.errors import TrainingError
from convlens_training.recipes import ImageSize

# Ends the name of the number of steps that a batch normalisation has seen.
_COUNTER = ".num_batches_tracked"


class Preprocess(nn.Module):
    """Turns pixels into a network's values, as the manifest says.

    (p / 255 × (high − low) + low − mean) / std is one factor and one term for each channel, computed in float64.

    Args:
        image: The image and its normalisation.
    """

    factor: torch.Tensor
    term: torch.Tensor

    def __init__(self, image: ImageInput) -> None:
        super().__init__()
        low, high = image.value_range
        std = np.array(image.std or [1.0] * image.channels)
        mean = np.array(image.mean or [0.0] * image.channels)
        for name, values in (("factor", (high - low) / 255 / std), ("term", (low - mean) / std)):
            shaped = torch.from_numpy(values.reshape(-1, 1, 1).astype(np.float32))
            self.register_buffer(name, shaped, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 N × height × width × channels to float32 N × channels × height × width."""
        values = images.permute(0, 3, 1, 2).float()
        if torch.compiler.is_compiling():
            # torch 2.6 cannot export what changes a tensor in place.
            return values * self.factor + self.term
        # In place: to get memory for another tensor takes several times as long as the arithmetic.
        return values.mul_(self.factor).add_(self.term)


def build(name: str, image: ImageInput, classes: int) -> nn.Sequential:
    """A network with fresh weights, from torch's random numbers.

    Its first module, `preprocess`, takes uint8 N × height × width × channels; its last, `softmax`, gives float32
    N × classes. The modules between them have the names that the layers have in the exported file.

    Args:
        name: As `architectures.find` takes it.
        image: What it takes; of a size that fits the network.
        classes: Number of classes, ≥ 2.

    Raises:
        TrainingError: There is no such network, or it does not take images of that size.
    """
    size = ImageSize(image.height, image.width, image.channels)
    made = architectures.find(name).layers
    try:
        # Without arithmetic, and before weights are drawn.
        body = _outline(made, size, classes).eval()
        with torch.device("meta"):
            body(torch.empty(2, size.channels, size.height, size.width))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise TrainingError(
            f"network {name} does not take images of {size} (height × width × channels): choose another --image-size "
            f"({' '.join(str(error).split())})"
        ) from None
    layers = OrderedDict[str, nn.Module](preprocess=Preprocess(image))
    layers.update(made(size, classes))
    layers["softmax"] = nn.Softmax(dim=1)
    return nn.Sequential(layers)


def without_ends(network: nn.Sequential) -> nn.Sequential:
    """The same modules, from the network's values (float32 N × channels × height × width) to logits."""
    return network[1:-1]


def load_weights(network: nn.Sequential, name: str, path: Path, size: ImageSize, classes: int) -> None:
    """Gives a network the weights of a file, all but its head's, which stay as they are.

    The head is what depends on the number of classes.

    Args:
        network: As `build` makes it.
        name: Its name.
        path: Of a state dict as torch.save writes it, such as the files of torchvision's weights, or of a checkpoint
            of ours.
        size: As for `build`.
        classes: Of the network.

    Raises:
        TrainingError: The file cannot be read, or is of another network.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise TrainingError(f"--weights {path} cannot be read: {error.strerror or error}") from None
    except Exception:
        # torch's unpickler raises what it stumbles over: UnpicklingError, RuntimeError, EOFError, KeyError …
        raise TrainingError(
            f"--weights {path} is no file of weights, or is damaged: give a state dict as torch.save writes it, or a "
            "checkpoint of a run"
        ) from None
    # A checkpoint of ours has the network's own weights beside others.
    weights = content.get("average") or content.get("network") or content if isinstance(content, dict) else {}
    found = {_plain(str(key)): value for key, value in weights.items()}
    # The second outputs of googlenet and inception_v3.
    found = {key: value for key, value in found.items() if not key.lower().startswith("aux")}
    head = _head(name, size, classes)
    expected = {key: value for key, value in network.state_dict().items() if key not in head}
    # Only counts steps, and files older than it are without.
    expected = {key: value for key, value in expected.items() if _plain(key) in found or not key.endswith(_COUNTER)}
    wrong = [key for key, value in expected.items() if getattr(found.get(_plain(key)), "shape", None) != value.shape]
    strange = set(found) - {_plain(key) for key in [*expected, *head]}
    if wrong or strange:
        shapes = [f"{_plain(key)} {_shape(found.get(_plain(key)))}, not {_shape(expected[key])}" for key in wrong[:3]]
        raise TrainingError(
            f"--weights {path} is not of {name} for images of {size}: of {len(expected)} tensors {len(wrong)} are "
            f"missing or of another shape ({'; '.join(shapes) or 'none'}), and {len(strange)} are unknown "
            f"({', '.join(sorted(strange)[:3]) or 'none'}): give a file of {name}'s weights, made for this size"
        )
    with torch.no_grad():
        for key, value in expected.items():
            value.copy_(found[_plain(key)])


def _plain(key: str) -> str:
    """A tensor's name as it is in the network itself, and in torchvision's present release."""
    return current_name(key.removeprefix("module.").removeprefix(f"{BODY}."))


def _shape(value: object) -> str:
    return "×".join(map(str, value.shape)) or "a number" if isinstance(value, torch.Tensor) else "missing"


def _head(name: str, size: ImageSize, classes: int) -> set[str]:
    made = architectures.find(name).layers
    shapes = [
        {key: value.shape for key, value in _outline(made, size, count).state_dict().items()}
        for count in (classes, classes + 1)
    ]
    return {key for key, shape in shapes[0].items() if shapes[1][key] != shape}


class _NoMemory(TorchFunctionMode):
    """Makes `torch.empty`, of which modules make their weights, take no memory; a few networks compute with others."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        return func(*args, **({**given, "device": "meta"} if func is torch.empty else given))


def _outline(made: Callable[[ImageSize, int], dict[str, nn.Module]], size: ImageSize, classes: int) -> nn.Sequential:
    """A network of shapes alone: made without drawing weights, and computing nothing."""
    with _NoMemory(), torch.random.fork_rng([]):
        return nn.Sequential(OrderedDict(made(size, classes))).to("meta")
