"""Class activation maps: a layer's maps put together into one, by what each of them tells of a class.

The maps are channels × rows × columns of one layer for one image, and so is what is given, without channels: float32,
≥ 0, not yet normalised.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from convlens_server.attribution.placing import Placing
from convlens_server.background import Background, Image

Maps = npt.NDArray[np.float32]


def score_cam(background: Background, image: Image, class_index: int, maps: Maps, placing: Placing) -> Maps:
    """Score-CAM: each map weighted by the class's logit for the image seen through it.

    Source: H. Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks", CVPR
    Workshops 2020, arXiv 1910.01279, algorithm 1: each map is spread over the image and normalised to 0 … 1, and the
    image is multiplied by it. What that raises the class's logit above a baseline's goes through a softmax over the
    channels, so that the weights are positive and add up to 1; the baseline cancels out there and is not computed. A
    map that is equal everywhere masks nothing and is left out.

    Args:
        background: Runs the masked images.
        image: uint8 height × width × channels.
        class_index: The class.
        maps: Of the layer.
        placing: Of the layer's maps in the image.

    Raises:
        ServiceError: As `Background.run`.
    """
    flat = maps.reshape(len(maps), -1)
    telling = np.flatnonzero(flat.max(1) > flat.min(1))

    def masked() -> Iterator[Image]:
        for channel in telling:
            mask = placing.spread(maps[channel])
            low, high = mask.min(), mask.max()
            mask = (mask - low) / (high - low) if high > low else np.zeros_like(mask)
            yield np.rint(image * mask[..., None]).astype(np.uint8)

    logits = np.array([logit for outputs in background.run(masked()) for logit in outputs.logits[:, class_index]])
    if not len(logits):
        return np.zeros(maps.shape[1:], np.float32)
    raised = np.exp(logits.astype(np.float64) - logits.max())
    return weighted(maps[telling], raised / raised.sum())


def eigen_cam(maps: Maps) -> Maps:
    """Eigen-CAM: the maps' projection on their first principal component; of no class.

    Source: M. B. Muhammad, M. Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020, arXiv
    2008.00299. As there the maps are not centred: the component is the first right singular vector of the matrix of
    positions × channels. Its sign, which is arbitrary, is the one with which the projection is positive where the maps
    are large.
    """
    values = maps.reshape(len(maps), -1).T.astype(np.float64)
    # By the smaller of the two products of the matrix with itself: it may have 50,176 positions and 64 channels.
    if values.shape[0] <= values.shape[1]:
        eigenvalues, vectors = np.linalg.eigh(values @ values.T)
        projection = vectors[:, -1] * np.sqrt(max(eigenvalues[-1], 0.0))
    else:
        projection = values @ np.linalg.eigh(values.T @ values)[1][:, -1]
    if projection @ np.linalg.norm(values, axis=1) < 0:
        projection = -projection
    largest: Maps = np.maximum(projection, 0).astype(np.float32).reshape(maps.shape[1:])
    return largest


def grad_cam(maps: Maps, gradients: Maps) -> Maps:
    """Grad-CAM: each map weighted by its mean gradient.

    Source: R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
    ICCV 2017, arXiv 1610.02391.

    Args:
        maps: Of the layer.
        gradients: Of the class's logit with respect to each of their values.
    """
    return weighted(maps, gradients.mean((1, 2), dtype=np.float64))


def weighted(maps: Maps, weights: npt.NDArray[np.floating]) -> Maps:
    """The positive part of the maps' weighted sum."""
    return np.maximum(np.tensordot(weights.astype(np.float64), maps.astype(np.float64), 1), 0).astype(np.float32)


def normalised(values: Maps) -> Maps:
    """The values divided by the largest; as they are where all are 0."""
    largest = values.max(initial=0)
    return values / largest if largest > 0 else values
