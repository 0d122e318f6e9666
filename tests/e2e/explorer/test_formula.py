"""The view that shows a unit's arithmetic in numbers."""

from __future__ import annotations

import re

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect

from reading import cells, maps, named, point, taken, value, view, written
from support import Served
from visiting import Visit

TINY = "#model=tiny_vgg&image=espresso&view=formula"
CONV = f"{TINY}&layer=conv_1_2&unit=3,25,10&with-input=2"


def told(page: Page, form: str) -> Locator:
    """The view, once the server has explained a unit."""
    found = view(page, "formula")
    expect(found.locator(".sums")).to_have_attribute("data-form", form)
    return found


def terms(found: Locator) -> list[dict[str, float]]:
    rows = found.locator("table.terms td").evaluate_all("cells => cells.map(cell => ({...cell.dataset}))")
    return [{name: float(text) for name, text in row.items()} for row in rows]


def at(found: Locator) -> tuple[int, int]:
    sums = found.locator(".sums")
    return int(sums.get_attribute("data-row") or -1), int(sums.get_attribute("data-column") or -1)


def test_products_of_window_and_kernel_add_up(visit: Visit, served: Served) -> None:
    page = visit.on(CONV)
    found = told(page, "weightedSum")
    listed = terms(found)
    assert len(listed) == 9
    for term in listed:
        assert term["product"] == pytest.approx(term["value"] * term["weight"], rel=1e-5, abs=1e-12)
    for box, term in zip(found.locator("table.terms td").all(), listed, strict=True):
        factors = [written(text) for text in box.locator("span").inner_text().split("×")]
        assert factors == pytest.approx([term["value"], term["weight"]], abs=0.0051)
    inputs, output = found.locator(".pane table.matrix").all()
    np.testing.assert_allclose(taken(inputs), [term["value"] for term in listed], rtol=1e-6)
    assert named(found, "channel-sum") == pytest.approx(sum(term["product"] for term in listed), rel=1e-5)
    result = named(found, "result")
    assert result == pytest.approx(named(found, "sum") + named(found, "bias"), rel=1e-5)
    assert taken(output) == pytest.approx([result], rel=1e-4)
    assert result == pytest.approx(maps(served, "tiny_vgg", "espresso", "conv_1_2")[3, 25, 10], rel=1e-4)


def test_every_cell_shows_its_value_rounded(visit: Visit, served: Served) -> None:
    page = visit.on(CONV)
    found = told(page, "weightedSum")
    inputs = found.locator(".pane table.matrix").first
    source = maps(served, "tiny_vgg", "espresso", "relu_1_1")[2]
    for row, column, number, _ in cells(inputs):
        assert number == pytest.approx(source[int(row), int(column)], rel=1e-6)
    for box in inputs.locator("td").all():
        value(box)


def test_it_plays_row_by_row_until_paused_and_steps(visit: Visit, served: Served) -> None:
    # A link without a unit begins where most was found.
    strengths = np.abs(maps(served, "tiny_vgg", "espresso", "relu_2_2")[3])
    first, start = (int(each) for each in np.unravel_index(strengths.argmax(), strengths.shape))
    assert start < strengths.shape[1] - 8
    page = visit.on(f"{TINY}&layer=relu_2_2&unit=3")
    found = told(page, "function")
    sums = found.locator(".sums")
    arguments = [sums.element_handle(), start + 3]
    page.wait_for_function("([one, column]) => Number(one.dataset.column) >= column", arg=arguments)
    found.get_by_role("button", name="Pause").click()
    expect(found.get_by_role("button", name="Play")).to_be_visible()
    page.wait_for_load_state("networkidle")
    row, column = at(found)
    found.get_by_role("button", name="One step on").click()
    expect(sums).to_have_attribute("data-column", str(column + 1))
    found.get_by_role("button", name="One step back").click()
    expect(sums).to_have_attribute("data-column", str(column))
    assert row == first


def test_after_the_last_column_comes_the_next_row(visit: Visit) -> None:
    page = visit.on(f"{TINY}&layer=relu_1_2&unit=3,0,59")
    found = told(page, "function")
    found.get_by_role("button", name="One step on").click()
    expect(found.locator(".sums")).to_have_attribute("data-row", "1")
    expect(found.locator(".sums")).to_have_attribute("data-column", "0")


def test_hovering_either_matrix_moves_the_window_and_pauses(visit: Visit) -> None:
    page = visit.on(f"{TINY}&layer=conv_1_2&unit=3,0,0&with-input=2")
    found = told(page, "weightedSum")
    found.get_by_role("button", name="Play").click()
    expect(found.get_by_role("button", name="Pause")).to_be_visible()
    inputs, output = found.locator(".pane table.matrix").all()
    point(page, output.locator("td[data-row='2'][data-column='5']"), 0.5, 0.5)
    expect(found.get_by_role("button", name="Play")).to_be_visible()
    expect(found.locator(".sums")).to_have_attribute("data-column", "5")
    window = cells(inputs)
    assert window[window[:, 3] == 1, :2].tolist() == [[row, column] for row in (2, 3, 4) for column in (5, 6, 7)]
    # The window is laid around the cell that is pointed at.
    point(page, inputs.locator("td[data-row='6'][data-column='3']"), 0.5, 0.5)
    expect(found.locator(".sums")).to_have_attribute("data-row", "5")
    expect(found.locator(".sums")).to_have_attribute("data-column", "2")
    expect(page).to_have_url(re.compile("unit=3,5,2"))


def test_arrow_keys_move_the_window_and_signs_zoom(visit: Visit) -> None:
    page = visit.on(CONV)
    found = told(page, "weightedSum")
    matrix = found.locator(".pane table.matrix").last
    matrix.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    expect(found.locator(".sums")).to_have_attribute("data-column", "11")
    expect(found.locator(".sums")).to_have_attribute("data-row", "26")
    seen = matrix.locator("td").count()
    page.keyboard.press("-")
    assert matrix.locator("td").count() > seen
    page.keyboard.press("+")
    page.keyboard.press("+")
    assert matrix.locator("td").count() < seen
    # What is pointed at stays in sight.
    assert len(taken(matrix)) == 1


def test_the_overview_of_a_large_map_leads_to_any_place(visit: Visit) -> None:
    page = visit.on(CONV)
    found = told(page, "weightedSum")
    point(page, found.locator(".pane .matrix-overview").last, 50.5 / 60, 5.5 / 60)
    expect(found.locator(".sums")).to_have_attribute("data-row", "5")
    expect(found.locator(".sums")).to_have_attribute("data-column", "50")


def test_relu_is_the_larger_of_zero_and_its_value(visit: Visit) -> None:
    page = visit.on(f"{TINY}&layer=relu_1_2&unit=3,25,10")
    found = told(page, "function")
    expect(found.locator(".formula")).to_have_text("f(x) = max(0, x)")
    for column in (10, 11, 12):
        expect(found.locator(".sums")).to_have_attribute("data-column", str(column))
        x = float(found.locator("output[data-name=x]").get_attribute("data-value") or "nan")
        assert named(found, "result") == pytest.approx(max(0.0, x))
        inputs, output = found.locator(".pane table.matrix").all()
        assert taken(inputs) == pytest.approx([x])
        assert taken(output) == pytest.approx([max(0.0, x)])
        found.get_by_role("button", name="One step on").click()


def test_max_pooling_marks_the_largest_of_its_window(visit: Visit) -> None:
    page = visit.on(f"{TINY}&layer=max_pool_1&unit=3,9,12")
    found = told(page, "pooling")
    inputs, output = found.locator(".pane table.matrix").all()
    window = taken(inputs)
    assert len(window) == 4
    assert named(found, "result") == pytest.approx(window.max())
    assert taken(output) == pytest.approx([window.max()])
    marked = found.locator("table.terms td.marked")
    assert float(marked.get_attribute("data-value") or "nan") == pytest.approx(window.max())
    assert [
        written(text) for text in re.findall(r"−?\d+\.\d+", found.locator("p.arithmetic").first.inner_text())
    ] == pytest.approx([*window, window.max()], abs=0.0051)


def test_units_without_positions_are_laid_in_rows(visit: Visit, served: Served) -> None:
    page = visit.on("#model=lecture_cnn&image=5&view=formula&layer=relu_3&unit=37")
    found = told(page, "function")
    activations = maps(served, "lecture_cnn", "5", "relu_3")
    assert named(found, "result") == pytest.approx(float(activations[37]), rel=1e-4)
    matrix = found.locator(".pane table.matrix").last
    assert taken(matrix) == pytest.approx([float(activations[37])], rel=1e-4)


def test_a_tap_moves_the_window(visit: Visit) -> None:
    page = visit(CONV, viewport={"width": 360, "height": 780}, has_touch=True)
    found = told(page, "weightedSum")
    cell = found.locator(".pane table.matrix").last.locator("td").first
    row, column = cell.get_attribute("data-row"), cell.get_attribute("data-column")
    cell.tap()
    expect(found.locator(".sums")).to_have_attribute("data-row", row or "")
    expect(found.locator(".sums")).to_have_attribute("data-column", column or "")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_padding_is_shown_around_the_map(visit_grown: Visit, grown: Served) -> None:
    page = visit_grown.on("#model=resnet18&image=pizza&view=formula&layer=conv1&unit=3,0,0&with-input=1")
    found = told(page, "weightedSum")
    listed = terms(found)
    assert len(listed) == 49
    inputs = found.locator(".pane table.matrix").first
    assert len(taken(inputs)) == 49
    np.testing.assert_allclose(taken(inputs), [term["value"] for term in listed], atol=1e-6)
    # Three rows and columns of the 7 × 7 window lie outside.
    assert inputs.locator("td.taken.padding").count() == 49 - 16
    assert named(found, "result") == pytest.approx(
        float(maps(grown, "resnet18", "pizza", "conv1")[3, 0, 0]), rel=1e-4, abs=1e-6
    )


def test_padding_never_wins_a_maximum(visit_grown: Visit) -> None:
    page = visit_grown.on("#model=resnet18&image=pizza&view=formula&layer=maxpool&unit=3,0,5")
    found = told(page, "pooling")
    inputs = found.locator(".pane table.matrix").first
    window = taken(inputs)
    assert np.isneginf(window[:3]).all()
    assert named(found, "result") == pytest.approx(window.max())


def test_a_residual_addition_names_both_ways(visit_grown: Visit) -> None:
    page = visit_grown.on("#model=resnet18&image=pizza&view=formula&layer=layer1.0.add&unit=3,10,15")
    found = told(page, "elementwise")
    operands = [value(one) for one in found.locator("output[data-name=value]").all()]
    assert len(operands) == 2
    assert named(found, "result") == pytest.approx(sum(operands), rel=1e-5)
    assert found.locator(".operand small").all_inner_texts() == ["layer1.0.conv2", "maxpool"]
    assert [taken(matrix)[0] for matrix in found.locator(".pane table.matrix").all()] == pytest.approx(
        [*operands, sum(operands)], rel=1e-5
    )


def test_global_pooling_is_the_mean_of_its_map(visit_grown: Visit) -> None:
    page = visit_grown.on("#model=resnet18&image=pizza&view=formula&layer=avgpool&unit=3,0,0")
    found = told(page, "pooling")
    window = taken(found.locator(".pane table.matrix").first)
    assert len(window) == 49
    assert named(found, "divisor") == 49
    assert named(found, "sum") == pytest.approx(window.sum(), rel=1e-5)
    assert named(found, "result") == pytest.approx(window.mean(), rel=1e-5)
