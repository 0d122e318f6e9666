"""What the page looks like, and that everybody can use it: stored screenshots, accessibility, small screens."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visiting import Visit, ready

STORED = Path(__file__).parent / "screenshots"
AXE = Path(__file__).parents[3] / ".venv-browser" / "axe.min.js"
TINY = "#model=tiny_vgg&image=espresso"
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}

# So fonts of other machines, which move letters by a pixel, make little difference.
SHRUNK = 4
# Of 255, over the whole picture, and for a tenth of its area: a missing column of maps is far more than that.
TOLERANCE = 6

SCREENS = {
    "light": (TINY, {}),
    "dark_japanese": (f"{TINY}&details=1", {"color_scheme": "dark", "locale": "ja-JP"}),
    "phone": (TINY, PHONE),
    "side_by_side": ("#model=lecture_cnn&image=3,5", {}),
    "convolution": (f"{TINY}&view=conv&layer=conv_1_2&unit=3,20,22", {}),
    "numbers": (
        f"{TINY}&view=formula&layer=conv_1_2&unit=3,8,36&with-input=2",
        {"color_scheme": "dark", "locale": "ja-JP"},
    ),
    "contributions": (f"{TINY}&view=dense&layer=output&unit=1", PHONE),
    "blocks": ("#model=branching&image=pizza", {"color_scheme": "dark"}),
}


def picture(page):
    mask = [page.locator(".live-figures, .live svg, .answer")]
    shot = page.screenshot(mask=mask, mask_color="#808080", animations="disabled")
    image = Image.open(io.BytesIO(shot)).convert("RGB")
    return image.resize((image.width // SHRUNK, image.height // SHRUNK), Image.Resampling.BOX)


@pytest.mark.parametrize("name", SCREENS)
def test_the_page_looks_as_stored(visit: Visit, name):
    link, options = SCREENS[name]
    page = visit(link, reduced_motion="reduce", **options)
    if "view=" in link:
        page.wait_for_selector(".view-body:not([aria-busy]) output")
    shown = picture(page)
    path = STORED / f"{name}.png"
    if os.environ.get("CONVLENS_STORE_SCREENSHOTS"):
        STORED.mkdir(exist_ok=True)
        shown.quantize(64).save(path, optimize=True)
    stored = Image.open(path).convert("RGB")
    assert shown.size == stored.size
    difference = np.abs(np.asarray(shown, float) - np.asarray(stored, float)).mean(2)
    assert difference.mean() < TOLERANCE
    # Nor may any part of the page differ much: means of squares of a tenth of its height.
    side = shown.height // 10
    parts = [
        difference[y : y + side, x : x + side].mean()
        for y in range(0, shown.height - side, side)
        for x in range(0, shown.width - side, side)
    ]
    assert max(parts) < 5 * TOLERANCE


@pytest.mark.skipif(not AXE.is_file(), reason="no axe-core: scripts/browser gets it")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "link",
    [f"{TINY}&details=1", f"{TINY}&read=first", "#model=branching&image=pizza",
     f"{TINY}&view=conv&layer=conv_1_2&unit=3,4,5", f"{TINY}&view=formula&layer=relu_1_1&unit=3,4,5",
     f"{TINY}&view=dense&layer=output&unit=1", f"{TINY}&view=softmax&layer=softmax&unit=1",
     f"{TINY}&view=playground", f"{TINY}&view=attribution", f"{TINY}&view=compare"],
)  # fmt: skip
def test_axe_finds_nothing(visit: Visit, link, scheme):
    # The checker is no part of the page, so the page's policy does not let it in by itself.
    page = visit.on(link, color_scheme=scheme, reduced_motion="reduce", bypass_csp=True)
    if "view=" in link:
        page.wait_for_selector(".view-body:not([aria-busy])")
    if page.evaluate("!window.axe"):
        page.add_script_tag(path=AXE)
    # A theme changes nothing but colours.
    rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    if scheme == "dark":
        rules = ["color-contrast"]
    found = page.evaluate("runOnly => axe.run(document, { runOnly })", rules)
    problems = [
        f"{rule['id']}: {node['html'][:160]} {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"][:3]
    ]
    assert problems == []


def test_dialogs_and_the_pad_are_accessible(visit: Visit):
    if not AXE.is_file():
        pytest.skip("no axe-core: scripts/browser gets it")
    page = visit("#model=lecture_cnn&image=3", bypass_csp=True, reduced_motion="reduce")
    page.add_script_tag(path=AXE)
    page.locator("#way-draw").click()
    page.locator("#export").click()
    for act in (lambda: None, lambda: page.locator("#way-address").click()):
        act()
        found = page.evaluate("axe.run(document)")
        assert [(rule["id"], rule["nodes"][0]["html"][:160]) for rule in found["violations"]] == []


def test_without_movement_nothing_moves(visit: Visit):
    page = visit(TINY, reduced_motion="reduce")
    page.locator('[data-image="pizza"]').click()
    ready(page, "pizza")
    assert page.evaluate("document.getAnimations().filter((each) => each.effect.getTiming().duration > 1).length") == 0
