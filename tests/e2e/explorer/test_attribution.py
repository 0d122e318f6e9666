"""The view that says where an answer comes from."""

from __future__ import annotations

import re

import numpy as np
import pytest
from playwright.sync_api import Locator, expect

from convlens.v1 import convlens_pb2 as pb
from reading import point, sample, view
from support import Served
from visiting import Visit

HOME = "#model=tiny_vgg&image=espresso&view=attribution"
METHODS = {
    "occlusion": pb.ATTRIBUTION_METHOD_OCCLUSION,
    "score_cam": pb.ATTRIBUTION_METHOD_SCORE_CAM,
    "eigen_cam": pb.ATTRIBUTION_METHOD_EIGEN_CAM,
    "grad_cam": pb.ATTRIBUTION_METHOD_GRAD_CAM,
}


def answered(found: Locator) -> None:
    expect(found.locator(".attribution-says")).to_contain_text("The network ran on")


def test_the_map_under_the_pointer_is_the_servers(visit: Visit, served: Served) -> None:
    page = visit.on(HOME)
    found = view(page, "attribution")
    images = sample(served, "tiny_vgg", "espresso")
    for method, number in METHODS.items():
        found.get_by_label("Method").select_option(method)
        expect(found.locator(".attribution-stage")).to_have_attribute("data-method", method)
        answer = served.stub.Attribute(pb.AttributeRequest(model="tiny_vgg", images=images, method=number))
        expected = np.frombuffer(answer.map, np.float32).reshape(answer.height, answer.width)
        row, column = (int(number) for number in np.unravel_index(np.abs(expected).argmax(), expected.shape))
        point(page, found.locator(".attribution-image"), (column + 0.5) / 64, (row + 0.5) / 64)
        chip = found.locator(".chip-line")
        expect(chip).to_have_attribute("data-row", str(row))
        expect(chip).to_have_attribute("data-column", str(column))
        assert float(chip.get_attribute("data-value") or "nan") == pytest.approx(float(expected[row, column]), rel=1e-4)


def test_opacity_and_method_are_in_the_link(visit: Visit) -> None:
    page = visit.on(HOME)
    found = view(page, "attribution")
    answered(found)
    found.get_by_label("Opacity").fill("30")
    expect(found.locator("canvas.heat")).to_have_css("opacity", "0.3")
    found.get_by_label("Method").select_option("score_cam")
    expect(found.locator(".attribution-says")).to_contain_text("relu_2_2")
    expect(page).to_have_url(re.compile("with-opacity=30&with-method=score_cam"))
    expect(found.get_by_label("Layer")).to_be_enabled()


def test_all_methods_stand_side_by_side(visit: Visit) -> None:
    page = visit.on(HOME)
    found = view(page, "attribution")
    found.get_by_role("button", name="All four methods").click()
    expect(found.locator("button.method")).to_have_count(4)
    expect(page).to_have_url(re.compile("with-all=1"))
    found.get_by_role("button", name="Show Eigen-CAM large").click()
    expect(found.locator(".attribution-stage")).to_have_attribute("data-method", "eigen_cam")
    expect(found.locator("button.method")).to_have_count(4)
    found.get_by_role("button", name="All four methods").click()
    expect(found.locator("button.method")).to_have_count(0)


def test_another_class_can_be_asked_about(visit: Visit) -> None:
    page = visit.on(HOME)
    found = view(page, "attribution")
    expect(found.locator(".attribution-says b")).to_contain_text("espresso")
    found.get_by_label("Class").select_option("koala")
    expect(found.locator(".attribution-says b")).to_contain_text("koala")


def test_a_layer_can_be_chosen_and_a_refusal_is_said(visit: Visit) -> None:
    page = visit.on(f"{HOME}&with-method=eigen_cam")
    found = view(page, "attribution")
    answered(found)
    found.get_by_label("Layer").select_option("conv_1_2")
    expect(found.locator(".attribution-says")).to_contain_text("conv_1_2")
    expect(page).to_have_url(re.compile("with-layer=conv_1_2"))
    page.evaluate("location.hash = location.hash.replace('with-layer=conv_1_2', 'with-layer=nowhere')")
    expect(found.locator(".attribution-says .failure")).to_contain_text("nowhere")
    # The browser notes the refusal itself.
    assert all("404" in complaint for complaint in visit.complaints)
    visit.complaints.clear()
