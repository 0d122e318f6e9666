"""The page around the network: ways to move, links, languages, themes, what can be saved, and the server's files."""

from __future__ import annotations

import io
import json
import re
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from convlens.v1 import convlens_pb2 as pb
from visiting import Visit, node, place, ready, samples, unit

TINY = "#model=tiny_vgg&image=espresso"


def zoom(page):
    return float(re.search(r"scale\((.*)\)", page.locator(".world").get_attribute("style"))[1])


def middle(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_a_link_restores_the_exact_view(visit: Visit):
    link = "#model=branching&version=1&image=pizza&scale=network&details=1&view=conv&layer=block1.conv1&unit=3,4,5"
    page = visit(link)
    expect(page.locator("#model")).to_have_value("branching")
    expect(page.locator("#version")).to_have_value("1")
    expect(page.locator("#scale")).to_have_value("network")
    expect(page.locator('[data-image="pizza"]')).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".view h2")).to_contain_text("block1.conv1")
    page.wait_for_selector('.view [data-view="conv"]')
    names = ("model", "version", "image", "view", "layer", "unit", "scale")
    shown = [place(page)[name] for name in names]
    assert shown == ["branching", "1", "pizza", "conv", "block1.conv1", "3,4,5", "network"]


def test_the_browsers_back_leads_back(visit: Visit):
    page = visit(TINY)
    unit(page, "conv_1_1", 2).click()
    page.wait_for_selector('.view [data-view="conv"]')
    assert place(page)["layer"] == "conv_1_1"
    page.go_back()
    expect(page.locator(".view")).to_be_hidden()
    page.go_forward()
    expect(page.locator(".view h2")).to_contain_text("conv_1_1")


def test_a_link_to_what_is_not_there_shows_what_is(visit: Visit):
    page = visit("#model=tiny_vgg&image=nothing&view=conv&layer=no_such_layer&unit=7&scale=odd")
    expect(page.locator(".view")).to_be_hidden()
    expect(page.locator('[data-image="bell_pepper"]')).to_have_attribute("aria-pressed", "true")


def test_models_and_versions_to_choose_from(visit: Visit):
    page = visit(TINY)
    expect(page.locator("#model option")).to_have_text(["branching", "lecture_cnn", "tiny_vgg", "tiny_vgg_bn"])
    expect(page.locator("#version")).to_be_hidden()
    page.locator("#model").select_option("branching")
    expect(node(page, "stem.conv")).to_be_visible()
    ready(page)
    expect(page.locator("#version")).to_have_value("2")
    page.locator("#version").select_option("1")
    expect(page.locator(".facts")).to_contain_text("version 1")
    ready(page)
    assert place(page)["version"] == "1"


def test_arrows_move_enter_opens_escape_steps_back(visit: Visit):
    page = visit(TINY)
    unit(page, "input", 0).focus()
    page.keyboard.press("ArrowRight")
    expect(unit(page, "conv_1_1", 0)).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(unit(page, "conv_1_1", 2)).to_be_focused()
    expect(page.locator(".chip")).to_contain_text("conv_1_1, channel 2")
    expect(page.locator(".is-source")).to_have_count(3)
    page.keyboard.press("End")
    expect(unit(page, "conv_1_1", 9)).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(unit(page, "input", 2)).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector('.view [data-view="conv"]')
    assert place(page)["unit"].startswith("2")
    page.keyboard.press("Escape")
    expect(page.locator(".view")).to_be_hidden()
    expect(unit(page, "conv_1_1", 2)).to_be_focused()
    page.keyboard.press("]")
    ready(page, "koala")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("one level back")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_page_of_channels_turns_by_key(visit: Visit):
    page = visit("#model=lecture_cnn&image=2")
    unit(page, "conv_1", 0).focus()
    page.keyboard.press("PageDown")
    expect(unit(page, "conv_1", 10)).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(unit(page, "conv_1", 9)).to_be_focused()


def test_a_click_on_nothing_leads_one_level_back(visit: Visit):
    page = visit(f"{TINY}&view=conv&layer=conv_1_2&unit=1")
    page.wait_for_selector('.view [data-view="conv"]')
    box = page.locator(".view-body").bounding_box()
    page.locator(".view-page").evaluate("content => content.style.width = '50%'")
    page.mouse.click(box["x"] + box["width"] - 8, box["y"] + box["height"] - 8)
    expect(page.locator(".view")).to_be_hidden()


def test_zoom_by_wheel_keys_and_buttons_and_moving_by_drag(visit: Visit):
    page = visit(TINY)
    start = zoom(page)
    x, y = middle(unit(page, "conv_2_1", 3))
    page.mouse.move(x, y)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -400)
    page.keyboard.up("Control")
    expect(page.locator(".world")).not_to_have_attribute("style", re.compile(rf"scale\({start}\)"))
    assert zoom(page) > 1.5 * start
    # What was under the pointer still is.
    assert middle(unit(page, "conv_2_1", 3)) == pytest.approx((x, y), abs=3)
    scroll = "element => [element.scrollLeft, element.scrollTop]"
    before = page.locator(".overview").evaluate(scroll)
    page.mouse.move(x + 60, y)
    page.mouse.down()
    page.mouse.move(x - 140, y, steps=4)
    page.mouse.up()
    assert page.locator(".overview").evaluate(scroll)[0] == pytest.approx(before[0] + 200, abs=3)
    page.keyboard.press("0")
    assert zoom(page) == pytest.approx(start, rel=1e-4)
    page.keyboard.press("+")
    assert zoom(page) == pytest.approx(1.25 * start, rel=1e-4)
    page.locator("#zoom-out").click()
    assert zoom(page) == pytest.approx(start, rel=1e-4)


def test_two_fingers_zoom(visit: Visit):
    page = visit(TINY, viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    start = zoom(page)
    touch = page.context.new_cdp_session(page)

    def fingers(kind, *xs):
        points = [{"x": x, "y": 500, "id": i} for i, x in enumerate(xs)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    fingers("touchStart", 150, 250)
    for spread in (10, 25, 50):
        fingers("touchMove", 150 - spread, 250 + spread)
    fingers("touchEnd")
    assert zoom(page) == pytest.approx(2 * start, rel=0.05)


def test_a_phone_shows_all_by_touch(visit: Visit):
    page = visit(TINY, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    unit(page, "conv_1_1", 1).tap()
    page.wait_for_selector('.view [data-view="conv"]')
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("button", name="One level back").tap()
    expect(page.locator(".view")).to_be_hidden()
    page.get_by_role("button", name="Explanation").tap()
    expect(page.locator("aside.article")).to_be_visible()


def test_a_narrow_screen_hides_no_tool(visit: Visit):
    page = visit("#model=lecture_cnn&image=3", viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    for name in ("Attribution", "Compare", "Playground", "Explanation"):
        tool = page.get_by_role("button", name=name).bounding_box()
        assert tool["x"] >= 0
        assert tool["x"] + tool["width"] <= 390
    draw = page.locator("#way-draw")
    expect(draw).to_be_hidden()
    page.get_by_role("button", name="Bring an image").tap()
    draw.tap()
    expect(page.locator(".pad")).to_be_visible()


def test_a_page_at_twice_its_size_scrolls_to_a_view(visit: Visit):
    page = visit(f"{TINY}&view=conv&layer=conv_1_2&unit=3,4,5", viewport={"width": 640, "height": 400})
    page.wait_for_selector(".view-body:not([aria-busy])")
    sheet = page.locator("section.view")
    sheet.evaluate("sheet => sheet.scrollIntoView({ block: 'end' })")
    assert sheet.bounding_box()["height"] > 0.6 * 400


def test_colours_are_explained_where_they_mean_something(visit: Visit):
    page = visit(TINY)
    key = page.get_by_role("img", name="red is negative")
    expect(key).to_be_visible()
    page.get_by_role("button", name="Playground").click()
    expect(page.locator('[data-view="playground"]')).to_be_visible()
    expect(key).to_be_hidden()
    expect(page.locator("#scale")).to_be_hidden()


def test_no_answer_is_taken_for_another_images(visit: Visit):
    page = visit(TINY)
    answer = page.locator(".answer")
    expect(answer).to_contain_text("“espresso” is espresso")
    held = []
    page.route("**/convlens.v1.ConvLens/Classify", lambda route: held.append(route))
    page.locator('[data-image="pizza"]').click()
    expect(answer).to_have_text("“pizza”: no answer yet")
    for route in held:
        route.continue_()
    expect(answer).to_contain_text("“pizza” is pizza")


def test_the_network_fits_the_window_as_it_changes(visit: Visit):
    page = visit(TINY, viewport={"width": 1400, "height": 900})
    wide = zoom(page)
    page.set_viewport_size({"width": 1000, "height": 640})
    expect(page.locator(".world")).not_to_have_attribute("style", re.compile(rf"scale\({wide}\)"))
    assert zoom(page) < wide


def test_japanese_and_english(visit: Visit):
    page = visit(TINY, locale="ja-JP")
    expect(page.locator("html")).to_have_attribute("lang", "ja")
    expect(node(page, "conv_1_1").locator(".node-kind")).to_have_text("畳み込み")
    expect(node(page, "output").locator(".node-kind")).to_contain_text("全結合")
    page.locator("#language").select_option("en")
    expect(node(page, "conv_1_1").locator(".node-kind")).to_have_text("Convolution")
    ready(page, "espresso")
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "en")


def test_both_languages_have_all_texts(served):
    def keys(value, path=()):
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from keys(inner, (*path, name))
        elif isinstance(value, list):
            yield (*path, len(value))
        else:
            yield (*path, *sorted(set(re.findall(r"\{\w+\}", value))))

    english, japanese = (json.loads(served.http(f"/explorer/text/{language}.json")[1]) for language in ("en", "ja"))
    assert sorted(keys(english), key=str) == sorted(keys(japanese), key=str)


def test_dark_and_light(visit: Visit):
    page = visit(TINY, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.locator("#theme").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    ready(page, "espresso")
    assert page.evaluate(background) != dark
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "light")


def test_the_servers_pulse(visit: Visit):
    page = visit(TINY)
    rate = page.locator(".live b").first
    expect(rate).to_have_text("0")
    page.locator('[data-image="pizza"]').click()
    expect(rate).not_to_have_text("0")
    expect(page.locator(".live b").nth(1)).not_to_have_text("–")


def saved(page, ending):
    page.locator("#export").click()
    with page.expect_download() as download:
        page.locator(f"#export-{ending}").click()
    assert download.value.suggested_filename.endswith(f".{ending}")
    return download.value.path().read_bytes()


def test_the_network_can_be_saved_as_picture_and_numbers(visit: Visit, served):
    page = visit(TINY)
    picture = Image.open(io.BytesIO(saved(page, "png"))).convert("RGB")
    colours = np.unique(np.asarray(picture).reshape(-1, 3), axis=0)
    assert min(picture.size) > 600
    assert len(colours) > 1000
    arrays = np.load(io.BytesIO(saved(page, "npz")))
    numbers = json.loads(saved(page, "json"))
    images = pb.Images(encoded=pb.EncodedImages(files=[samples(served, "tiny_vgg")["espresso"]]))
    request = pb.GetFeatureMapsRequest(model="tiny_vgg", images=images, all_layers=True)
    found = {message.layer: message for message in served.stub.GetFeatureMaps(request)}
    assert set(arrays.files) == {*found, "version"}
    for layer, message in found.items():
        exact = np.frombuffer(message.data, "<f4").reshape(tuple(message.shape)[1:])
        np.testing.assert_array_equal(arrays[layer], exact)
        np.testing.assert_allclose(numbers[layer], exact, rtol=1e-6)
    assert numbers["images"] == ["espresso"]


def test_a_view_can_be_saved_as_picture_and_numbers(visit: Visit):
    page = visit(f"{TINY}&view=conv&layer=conv_1_1&unit=2,10,11")
    page.wait_for_selector('.view [data-view="conv"]')
    expect(page.locator(".view-body")).not_to_have_attribute("aria-busy", "true")
    picture = Image.open(io.BytesIO(saved(page, "png"))).convert("RGB")
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 100
    assert json.loads(saved(page, "json"))
    assert np.load(io.BytesIO(saved(page, "npz"))).files


def test_files_are_safe_and_cheap_to_ask_for_again(served):
    base = f"http://127.0.0.1:{served.state.http_port}"

    def get(path, **headers):
        return urllib.request.urlopen(urllib.request.Request(base + path, headers=headers), timeout=10)

    with get("/") as page:
        policy = page.headers["Content-Security-Policy"]
        assert page.headers["X-Content-Type-Options"] == "nosniff"
        text = page.read().decode()
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"\son\w+=|style=|//[a-z]", text)
    with get("/explorer/js/main.js", **{"Accept-Encoding": "gzip"}) as script:
        assert script.headers["Content-Encoding"] == "gzip"
        assert script.headers["Content-Type"].startswith("text/javascript")
        tag = script.headers["ETag"]
    with pytest.raises(urllib.error.HTTPError, match="304"):
        get("/explorer/js/main.js", **{"If-None-Match": tag})
    for path in ("/explorer/../pyproject.toml", "/explorer/__init__.py", "/explorer/js/", "/explorer/no.js"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(path)
