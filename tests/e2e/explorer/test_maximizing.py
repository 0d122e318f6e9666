"""The images that activate a channel most."""

from __future__ import annotations

import re

import numpy as np
import pytest
from playwright.sync_api import expect

from convlens.v1 import convlens_pb2 as pb
from reading import maps, view
from support import Served
from visiting import Visit


def test_the_strongest_samples_with_what_the_unit_sees(visit: Visit, served: Served) -> None:
    page = visit.on("#model=tiny_vgg&image=espresso&view=conv&layer=conv_2_1&unit=2")
    view(page, "conv").get_by_role("button", name="Maximising images").click()
    found = view(page, "maximizing")
    cards = found.locator(".maximizing figure")
    expect(cards).to_have_count(9)
    names = [one.name for one in served.stub.GetSamples(pb.GetSamplesRequest(model="tiny_vgg")).samples]
    strongest = sorted((float(maps(served, "tiny_vgg", name, "conv_2_1")[2].max()) for name in names), reverse=True)[:9]
    shown = [float(card.get_attribute("data-activation") or "nan") for card in cards.all()]
    assert shown == pytest.approx(strongest, rel=1e-3)
    assert all(np.isfinite(shown))
    assert cards.first.locator("img").evaluate("one => one.naturalWidth") == 64
    expect(cards.first.locator(".map-window")).to_be_visible()
    page.keyboard.press("Escape")
    view(page, "conv")


def test_an_unknown_dataset_is_a_plain_sentence(visit: Visit) -> None:
    page = visit.on("#model=tiny_vgg&image=espresso&view=maximizing&layer=conv_2_1&unit=2")
    found = view(page, "maximizing")
    found.get_by_label("Dataset").fill("holidays")
    found.get_by_label("Dataset").press("Enter")
    expect(found.get_by_role("alert")).to_contain_text("holidays")
    expect(page).to_have_url(re.compile("with-dataset=holidays"))
