"""One's own images: every way to bring one, every size, and what is none."""

from __future__ import annotations

import base64
import http.server
import io
import re
import struct
import threading
import zlib
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from convlens.v1 import convlens_pb2 as pb
from visiting import Visit, node, place, ready, scores, unit

TINY = "#model=tiny_vgg&image=espresso"


def picture(form="PNG", size=(80, 60), mode="RGB", seed=0):
    random = np.random.default_rng(seed)
    file = io.BytesIO()
    # A few large patches, so that it looks like something to the network.
    small = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8))
    small.resize(size).convert(mode).save(file, form)
    return file.getvalue()


def upload(page, *files):
    page.locator("#file").set_input_files(
        [{"name": name, "mimeType": kind, "buffer": content} for name, kind, content in files]
    )


def hand_over(page, kind, *files, text=""):
    """Drops or pastes files, as a browser hands them to a page."""
    page.evaluate(
        """([kind, files, text]) => {
          const transfer = new DataTransfer();
          for (const [name, type, content] of files) {
            transfer.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name, { type }));
          }
          if (text) transfer.setData("text/plain", text);
          const event = kind === "paste"
            ? new ClipboardEvent(kind, { clipboardData: transfer, bubbles: true })
            : new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
          document.body.dispatchEvent(event);
        }""",
        [kind, [[name, type_, base64.b64encode(content).decode()] for name, type_, content in files], text],
    )


def expected(served, content, model="tiny_vgg"):
    request = pb.ClassifyRequest(
        model=model, images=pb.Images(encoded=pb.EncodedImages(files=[content])), include_scores=True
    )
    return served.stub.Classify(request).results[0].scores


@pytest.mark.parametrize(
    ("form", "size", "mode"),
    [("PNG", (80, 60), "RGB"), ("JPEG", (7, 300), "RGB"), ("WEBP", (500, 40), "RGB"), ("PNG", (1, 1), "RGB"),
     ("PNG", (33, 33), "L"), ("PNG", (50, 20), "RGBA"), ("JPEG", (1500, 1100), "RGB")],
)  # fmt: skip
def test_a_file_of_any_size_is_shown(visit: Visit, served, form, size, mode):
    page = visit(TINY)
    content = picture(form, size, mode)
    upload(page, (f"mine.{form.lower()}", f"image/{form.lower()}", content))
    ready(page, "own-1")
    expect(page.locator('[data-image="own-1"] img')).to_have_attribute("alt", f"mine.{form.lower()}")
    np.testing.assert_allclose(scores(page), expected(served, content), rtol=1e-4, atol=1e-6)


def test_files_that_are_dropped_and_pasted(visit: Visit, served):
    page = visit(TINY)
    dropped, pasted = picture(seed=1), picture(seed=2)
    hand_over(page, "dragenter")
    expect(page.locator("body.is-dropping")).to_have_count(1)
    hand_over(page, "drop", ("dropped.png", "image/png", dropped))
    expect(page.locator("body.is-dropping")).to_have_count(0)
    ready(page, "own-1")
    np.testing.assert_allclose(scores(page), expected(served, dropped), rtol=1e-4, atol=1e-6)
    hand_over(page, "paste", ("image.png", "image/png", pasted))
    ready(page, "own-2")
    np.testing.assert_allclose(scores(page), expected(served, pasted), rtol=1e-4, atol=1e-6)


def test_several_files_stand_side_by_side(visit: Visit):
    page = visit(TINY)
    upload(page, *((f"{seed}.png", "image/png", picture(seed=seed)) for seed in (1, 2, 3)))
    ready(page, "own-1", "own-2", "own-3")
    expect(unit(page, "conv_1_1", 0).locator("canvas")).to_have_count(3)


def test_a_format_that_the_server_does_not_read_is_turned_into_one(visit: Visit, served):
    page = visit(TINY)
    content = picture("GIF")
    upload(page, ("moving.gif", "image/gif", content))
    ready(page, "own-1")
    file = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").save(file, "PNG")
    np.testing.assert_allclose(scores(page), expected(served, file.getvalue()), rtol=1e-3, atol=1e-5)


@pytest.fixture
def other_host():
    """A server of pictures: `/open.png` may be read from other servers' pages, `/closed.png` may not."""
    content = picture(seed=5)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            if self.path == "/open.png":
                self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}", content
        server.shutdown()
        thread.join()


def ask_for(page, address):
    page.locator("#way-address").click()
    page.locator("#address").fill(address)
    page.get_by_role("button", name="Show", exact=True).click()


def test_a_picture_by_its_address_and_by_a_link(visit: Visit, served, other_host):
    host, content = other_host
    visit.hosts.add(host)
    page = visit(TINY)
    address = f"http://{host}/open.png"
    ask_for(page, address)
    ready(page, address)
    expect(page.get_by_role("dialog")).to_have_count(0)
    np.testing.assert_allclose(scores(page), expected(served, content), rtol=1e-4, atol=1e-6)
    expect(page).to_have_url(re.compile("open.png"))
    again = visit(page.url.partition(visit.url)[2].removeprefix("/"))
    ready(again, address)
    assert place(again)["image"] == address


def test_a_picture_that_may_not_be_read_is_said_so(visit: Visit, other_host):
    host, _ = other_host
    visit.hosts.add(host)
    page = visit(TINY)
    ask_for(page, f"http://{host}/closed.png")
    expect(page.get_by_role("dialog")).to_contain_text(f"No picture can be read from http://{host}/closed.png")
    page.keyboard.press("Escape")
    ready(page, "espresso")
    # In a link, beside another image, whose answer stays though nobody asks for it again.
    page.clock.install()
    page.evaluate("link => { location.hash = link; }", f"{TINY},{quote(f'http://{host}/closed.png', safe='')}")
    expect(page.get_by_role("alert")).to_contain_text("No picture can be read")
    expect(page).to_have_url(re.compile("image=espresso$"))
    page.clock.fast_forward(1000)
    expect(page.locator(".answer")).to_contain_text("“espresso” is espresso")
    # The browser itself complains of the other server.
    assert all("CORS" in complaint or "ERR_FAILED" in complaint for complaint in visit.complaints)
    visit.complaints.clear()


def test_a_picture_of_the_camera(visit: Visit):
    page = visit(TINY, permissions=["camera"])
    page.locator("#way-camera").click()
    shoot = page.get_by_role("button", name="Take it")
    expect(shoot).to_be_enabled()
    shoot.click()
    ready(page, "own-1")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_drawing_is_answered_while_one_draws(visit: Visit):
    page = visit("#model=lecture_cnn&image=3")
    page.locator("#way-draw").click()
    canvas = page.locator(".pad canvas")
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + 40
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + 40, steps=4)
    # Still drawing, and it has an answer already.
    page.wait_for_selector('.overview[data-shown^="drawing"]')
    page.mouse.move(x, y + 170, steps=8)
    page.mouse.up()
    expect(node(page, "softmax").locator(".is-best .label")).to_have_text("1")
    page.locator("#pad-clear").click()
    for _ in range(20):
        canvas.press("ArrowRight")
    expect(page.locator('.thumb[data-image^="drawing"]')).to_have_count(1)
    canvas.press("Escape")
    expect(page.locator(".pad")).to_have_count(0)
    page.locator("#model").select_option("tiny_vgg")
    expect(page.locator("#way-draw")).to_have_count(0)


def test_ones_own_images_are_there_again_and_can_be_taken_away(visit: Visit):
    page = visit(TINY)
    upload(page, ("mine.png", "image/png", picture()))
    ready(page, "own-1")
    before = scores(page)
    page.wait_for_function(KEPT, arg="own-1")
    expect(page).to_have_url(re.compile("image=own-1"))
    page.reload()
    ready(page, "own-1")
    assert scores(page) == before
    upload(page, ("other.png", "image/png", picture(seed=1)))
    ready(page, "own-2")
    page.get_by_role("button", name="Remove “other.png”").click()
    ready(page, "own-1")
    page.locator('.thumb[data-image="own-1"]').press("Delete")
    expect(page.locator('.thumb[data-image^="own"]')).to_have_count(0)
    ready(page, "bell_pepper")
    page.wait_for_function(f"async (id) => !(await ({KEPT})(id))", arg="own-1")
    page.reload()
    expect(page.locator(".thumb")).to_have_count(10)


# Whether the browser has kept an image.
KEPT = """id => new Promise((resolve) => {
  const asked = indexedDB.open("convlens");
  asked.onsuccess = () => {
    const found = asked.result.transaction("images").objectStore("images").getKey(id);
    found.onsuccess = () => (asked.result.close(), resolve(found.result === id));
  };
})"""


def test_a_drawing_is_there_again(visit: Visit):
    page = visit("#model=lecture_cnn&image=3")
    page.locator("#way-draw").click()
    for _ in range(12):
        page.locator(".pad canvas").press("ArrowDown")
    page.wait_for_selector('.overview[data-state="ready"][data-shown^="drawing"]')
    page.locator(".pad canvas").press("Escape")
    page.wait_for_function(f"() => ({KEPT})(document.querySelector('[data-image^=drawing]').dataset.image)")
    drawn = page.locator(".thumb[data-image^=drawing]").get_attribute("data-image")
    page.goto("about:blank")
    page.goto(f"{visit.url}/#model=lecture_cnn&image={drawn}")
    ready(page, drawn)


def test_a_link_to_somebody_elses_own_image_says_so(visit: Visit):
    page = visit("#model=tiny_vgg&image=own-7")
    expect(page.get_by_role("alert")).to_contain_text("an image of somebody's own")
    ready(page, "bell_pepper")
    page.locator('[data-image="pizza"]').click()
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_model_without_samples_asks_for_an_image(visit: Visit):
    page = visit(TINY)
    page.route("**/convlens.v1.ConvLens/GetSamples", lambda route: route.fulfill(json={}))
    page.goto("about:blank")
    page.goto(f"{visit.url}/#model=tiny_vgg")
    asked = page.get_by_role("region", name="No image yet")
    expect(asked).to_contain_text("tiny_vgg/1/samples")
    with page.expect_file_chooser() as chooser:
        asked.get_by_role("button", name="Choose a file").click()
    chooser.value.set_files([{"name": "mine.png", "mimeType": "image/png", "buffer": picture()}])
    ready(page, "own-1")
    expect(asked).to_be_hidden()


def test_a_text_file_is_no_image(visit: Visit):
    page = visit(TINY)
    hand_over(page, "drop", ("notes.txt", "text/plain", b"these are my notes"))
    banner = page.get_by_role("alert")
    expect(banner).to_contain_text("“notes.txt” is not an image that can be read here")
    ready(page, "espresso")
    upload(page, ("fine.png", "image/png", picture()))
    ready(page, "own-1")
    expect(banner).to_be_hidden()


def test_a_damaged_and_an_empty_image(visit: Visit):
    page = visit(TINY)
    banner = page.get_by_role("alert")
    upload(page, ("half.png", "image/png", picture(size=(400, 400))[:2000]))
    expect(banner).to_contain_text("damaged")
    ready(page, "espresso")
    expect(page.locator(".thumb")).to_have_count(10)
    upload(page, ("nothing.png", "image/png", b""))
    expect(banner).to_contain_text("“nothing.png” is empty")
    page.locator('[data-image="pizza"]').click()
    ready(page, "pizza")
    expect(banner).to_be_hidden()
    # The browser logs the server's refusal, and the thumbnail that it cannot draw.
    visit.complaints.clear()


def test_an_image_of_a_hundred_megapixels(visit: Visit):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"\0" * (10_000 // 8 + 1) * 10_000)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 10_000, 10_000, 1, 0, 0, 0, 0))
    content += chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    page = visit(TINY)
    upload(page, ("huge.png", "image/png", content))
    expect(page.get_by_role("alert")).to_contain_text("“huge.png” has 10,000 × 10,000 pixels (100 million)")
    ready(page, "espresso")


def test_a_large_photograph_is_sent_smaller(visit: Visit):
    page = visit(TINY)
    upload(page, ("photo.jpg", "image/jpeg", picture("JPEG", (6000, 4500))))
    ready(page, "own-1")
    expect(page.get_by_role("alert")).to_be_hidden()
