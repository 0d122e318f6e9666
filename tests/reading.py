"""Reading numbers back from the explorer's page."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from playwright.sync_api import Locator, Page, expect

from convlens.v1 import convlens_pb2 as pb
from support import Served
from visiting import samples

_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


def written(text: str) -> float:
    """A number as the page writes it: with a true minus, and very small ones as 4.3 × 10⁻⁵."""
    digits, _, power = text.partition(" × 10")
    number = digits.strip().replace("−", "-").replace("∞", "inf").replace(",", "")
    return float(f"{number}e{power.strip().translate(_RAISED)}" if power else number)


def value(number: Locator) -> float:
    """A shown number, unrounded; what is shown must be its rounding."""
    exact = float(number.get_attribute("data-value") or "nan")
    text = number.inner_text()
    digits, _, power = text.partition(" × 10")
    places = len(digits.partition(".")[2]) - int(power.translate(_RAISED) or "0")
    assert abs(written(text) - exact) <= 0.5 * 10**-places * (1 + 1e-6), f"{text} is shown for {exact}"
    return exact


def named(page: Page | Locator, name: str) -> float:
    """The number of a name in the open view, e.g. result."""
    return value(page.locator(f'output[data-name="{name}"]').first)


def view(page: Page, name: str) -> Locator:
    """The open view, once it is drawn."""
    found = page.locator(f'[data-view="{name}"]')
    expect(found.locator(".view-bar, .settings, .playground-fields").first).to_be_visible(timeout=15_000)
    return found


def cells(matrix: Locator) -> npt.NDArray[np.float64]:
    """Row, column and value of each cell of a matrix, and whether it is in the window: N × 4."""
    rows = matrix.locator("td").evaluate_all(
        """cells => cells.map(cell =>
            [cell.dataset.row, cell.dataset.column, cell.dataset.value, cell.classList.contains("taken") ? 1 : 0])"""
    )
    return np.array([[float(number) for number in row] for row in rows])


def taken(matrix: Locator) -> npt.NDArray[np.float64]:
    """The values in a matrix' window, row by row."""
    found = cells(matrix)
    return found[found[:, 3] == 1, 2]


def sample(served: Served, model: str, name: str) -> pb.Images:
    """One of a model's samples, as a request has it."""
    return pb.Images(encoded=pb.EncodedImages(files=[samples(served, model)[name]]))


def maps(served: Served, model: str, image: str, layer: str) -> npt.NDArray[np.float32]:
    """A layer's exact maps for a sample: channels × height × width, or units."""
    request = pb.GetFeatureMapsRequest(model=model, images=sample(served, model, image), layers=[layer])
    chunks = list(served.stub.GetFeatureMaps(request))
    data = b"".join(chunk.data for chunk in chunks)
    return np.frombuffer(data, np.float32).reshape(chunks[0].shape[1:])


def kernels(served: Served, model: str, layer: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """A layer's weights and biases."""
    chunks = list(served.stub.GetKernels(pb.GetKernelsRequest(model=model, layer=layer)))
    data = b"".join(chunk.data for chunk in chunks)
    return np.frombuffer(data, np.float32).reshape(chunks[0].shape), np.array(chunks[0].bias, np.float32)


def legends(found: Locator) -> list[tuple[float, float]]:
    """The ends of the view's legends, in order."""
    return [
        (written(legend.locator(".legend-low").inner_text()), written(legend.locator(".legend-high").inner_text()))
        for legend in found.locator(".legends .legend").all()
    ]


def point(page: Page, element: Locator, across: float, down: float) -> None:
    """Moves the mouse to a place within an element, given as shares of its width and height."""
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    assert box
    x, y = box["x"] + box["width"] * across, box["y"] + box["height"] * down
    page.mouse.move(x - 3, y - 3)
    page.mouse.move(x, y)
