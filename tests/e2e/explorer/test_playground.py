"""The playground of hyper-parameters."""

from __future__ import annotations

import re

import numpy as np
from playwright.sync_api import Locator, Page, expect

from reading import cells, point, taken, view, written
from visiting import Visit


def matrix(found: Locator, name: str) -> Locator:
    return found.get_by_role("table", name=name, exact=True)


def opened(visit: Visit, still: bool = True, **settings: int) -> tuple[Page, Locator]:
    options = "".join(f"&with-{name}={number}" for name, number in settings.items())
    motion = "reduce" if still else "no-preference"
    page = visit.on(f"#model=tiny_vgg&image=espresso&view=playground{options}", reduced_motion=motion)
    return page, view(page, "playground")


def grid(found: Locator) -> np.ndarray:
    numbers = cells(found)
    rows, columns = (numbers[:, axis] - numbers[:, axis].min() for axis in (0, 1))
    values = np.zeros((int(rows.max()) + 1, int(columns.max()) + 1))
    values[rows.astype(int), columns.astype(int)] = numbers[:, 2]
    return values


def test_it_begins_with_the_lectures_example(visit: Visit) -> None:
    _, found = opened(visit)
    assert grid(matrix(found, "Input")).tolist() == [[0, 1, 1, 0, 1]] * 5
    assert grid(matrix(found, "Kernel")).tolist() == [[1, 0, 1], [1, 1, 1], [0, 0, 1]]
    assert grid(matrix(found, "Output")).tolist() == [[4, 3, 5]] * 3
    expect(found.get_by_role("status").first).to_have_text("Input (5, 5) · with padding (5, 5) · output (3, 3)")


def test_results_are_those_of_a_convolution(visit: Visit) -> None:
    page, found = opened(visit)
    for size, padding, side, stride, dilation in (
        (7, 1, 3, 2, 1),
        (9, 2, 3, 1, 2),
        (6, 0, 2, 2, 1),
        (4, 3, 4, 3, 1),
        (12, 0, 1, 1, 1),
    ):
        settings = {"input": size, "padding": padding, "kernel": side, "stride": stride, "dilation": dilation}
        options = "".join(f"&with-{name}={number}" for name, number in settings.items())
        page.evaluate("hash => (location.hash = hash)", f"#model=tiny_vgg&view=playground{options}")
        for name, number in settings.items():
            expect(found.locator(f".setting[data-name={name}] input").last).to_have_value(str(number))
        padded, kernel, output = (grid(matrix(found, name)) for name in ("Input", "Kernel", "Output"))
        assert len(padded) == size + 2 * padding
        span = (side - 1) * dilation + 1
        assert len(output) == (len(padded) - span) // stride + 1
        for row, column in np.ndindex(*output.shape):
            top, left = row * stride, column * stride
            window = padded[top : top + span : dilation, left : left + span : dilation]
            assert output[row, column] == (window * kernel).sum()


def test_the_arithmetic_is_written_out_for_the_window(visit: Visit) -> None:
    page, found = opened(visit, input=7, padding=1, stride=2)
    point(page, matrix(found, "Output").locator("td[data-row='1'][data-column='2']"), 0.5, 0.5)
    line = found.locator("p.arithmetic")
    products = [int(one) * int(other) for one, other in re.findall(r"(\d+)×(\d+)", line.inner_text())]
    assert sum(products) == written(line.locator("output").inner_text())
    assert taken(matrix(found, "Output")).tolist() == [sum(products)]
    assert len(taken(matrix(found, "Input"))) == 9
    # The other way round: the window is laid around the input's cell.
    point(page, matrix(found, "Input").locator("td[data-row='0'][data-column='0']"), 0.5, 0.5)
    window = cells(matrix(found, "Output"))
    assert window[window[:, 3] == 1, :2].tolist() == [[0, 0]]


def test_a_stride_that_leaves_a_rest_is_marked_and_nothing_moves(visit: Visit) -> None:
    page, found = opened(visit, still=False, input=6)
    expect(found.get_by_role("button", name="Pause")).to_be_visible()
    stride = found.get_by_role("spinbutton", name="Stride")
    stride.fill("2")
    stride.press("Enter")
    expect(stride).to_have_attribute("aria-invalid", "true")
    expect(found.get_by_role("status").first).to_contain_text("6 − 3 = 3, which 2 does not divide")
    expect(found.get_by_role("button", name="Pause")).to_have_count(0)
    assert matrix(found, "Output").count() == 0
    expect(page).to_have_url(re.compile("with-stride=2"))
    found.get_by_role("slider", name="Padding").fill("2")
    expect(stride).to_have_attribute("aria-invalid", "true")
    stride.fill("1")
    stride.press("Enter")
    expect(stride).to_have_attribute("aria-invalid", "false")
    expect(found.get_by_role("button", name="Pause")).to_be_visible()


def test_settings_stay_within_each_others_limits(visit: Visit) -> None:
    _, found = opened(visit, input=8, kernel=7)
    size = found.get_by_role("slider", name="Input size")
    size.fill("3")
    expect(found.get_by_role("spinbutton", name="Kernel size")).to_have_value("3")
    expect(found.get_by_role("status").first).to_have_text("Input (3, 3) · with padding (3, 3) · output (1, 1)")


def test_it_plays_and_pauses(visit: Visit) -> None:
    page, found = opened(visit, still=False)
    page.wait_for_function("""() => {
        const cell = document.querySelector('[data-view=playground] figure:last-of-type td.taken');
        return cell && Number(cell.dataset.column) > 0;
    }""")
    found.get_by_role("button", name="Pause").click()
    expect(found.get_by_role("button", name="Play")).to_be_visible()
    before = cells(matrix(found, "Output"))
    found.get_by_role("button", name="One step on").click()
    assert not np.array_equal(before, cells(matrix(found, "Output")))


def test_the_keyboard_moves_the_window(visit: Visit) -> None:
    page, found = opened(visit)
    matrix(found, "Output").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    window = cells(matrix(found, "Output"))
    assert window[window[:, 3] == 1, :2].tolist() == [[1, 1]]
