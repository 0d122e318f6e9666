"""What is subtle in the page's modules, asked for by themselves in the browser."""

from __future__ import annotations

import base64
import io
import json
import random
import re

import numpy as np
import pytest
from playwright.sync_api import expect

from visiting import Visit, ready

TINY = "#model=tiny_vgg&image=espresso"
STRANGE = [
    "a",
    "layer1.0/conv&x=1",
    "50%",
    "100%25",
    "#",
    "é 猫",
    "a,b",
    "+",
    "?q=",
    "http://x.example/a?b=c&d=e,f#g",
    " ",
]


def states(count):
    chance = random.Random(5)
    for _ in range(count):
        place = {}
        if chance.random() < 0.8:
            place["view"] = chance.choice(["conv", "formula", "compare"])
            place["layer"] = chance.choice(STRANGE)
            if chance.random() < 0.8:
                place["channel"] = chance.randrange(2000)
                if chance.random() < 0.6:
                    place |= {"row": chance.randrange(300), "column": chance.randrange(300)}
            if chance.random() < 0.5:
                place["options"] = {chance.choice(["from", "input", "x-y"]): chance.choice(STRANGE)}
        yield {
            "model": chance.choice(STRANGE),
            "version": chance.randrange(4),
            "chosen": chance.sample(STRANGE, chance.randrange(4)),
            "scale": chance.choice(["unit", "module", "network"]),
            "details": chance.random() < 0.5,
            "article": chance.choice([None, "", "dense", "input"]),
            "place": place,
        }


def test_a_link_holds_the_state_whatever_names_there_are(visit: Visit):
    page = visit.on(TINY)
    given = list(states(300))
    back = page.evaluate(
        """async (states) => {
          const { fromHash, toHash } = await import("/explorer/js/link.js");
          return states.map((state) => fromHash(new URL(toHash(state), location.href).hash));
        }""",
        given,
    )
    assert back == given


def test_what_a_link_says_wrongly_is_left_out(visit: Visit):
    page = visit.on(TINY)
    script = """async (hash) => (await import("/explorer/js/link.js")).fromHash(hash)"""
    wrong = page.evaluate(script, "#version=-1&scale=all&unit=1e9,x,&image=%E0%A4%A&with-=1&&&=")
    assert (wrong["version"], wrong["scale"], wrong["model"]) == (0, "unit", "")
    assert "channel" not in wrong["place"]


def test_arrays_that_are_saved_are_numpys(visit: Visit):
    page = visit.on(TINY)
    content = page.evaluate(
        """async () => {
          const { npz } = await import("/explorer/js/export/npz.js");
          const { toBase64 } = await import("/explorer/js/wire.js");
          const blob = npz({
            scalar: { shape: [], values: Float64Array.of(Math.PI) },
            one: { shape: [3], values: [1, 2, 3] },
            four: { shape: [1, 2, 3, 4], values: Float32Array.from({ length: 24 }, (_, i) => i / 7) },
            none: { shape: [0, 5], values: new Float32Array(0) },
          });
          return toBase64(new Uint8Array(await blob.arrayBuffer()));
        }"""
    )
    arrays = np.load(io.BytesIO(base64.b64decode(content)))
    assert arrays["scalar"] == np.pi
    np.testing.assert_array_equal(arrays["one"], np.float32([1, 2, 3]))
    np.testing.assert_array_equal(arrays["four"], (np.arange(24) / 7).astype(np.float32).reshape(1, 2, 3, 4))
    assert arrays["none"].shape == (0, 5)


def test_a_stream_in_pieces_is_read_whole(visit: Visit):
    page = visit.on(TINY)
    found = page.evaluate(
        """async () => {
          const { envelope, opened } = await import("/explorer/js/wire.js");
          const end = envelope({});
          end[0] = 2;
          const parts = [envelope({ text: "é".repeat(300) }), envelope({ n: 2 }), end];
          const all = Uint8Array.from(parts.flatMap((part) => [...part]));
          const counts = [];
          for (const size of [1, 3, 5, 64, all.length]) {
            const body = new ReadableStream({
              start(controller) {
                for (let i = 0; i < all.length; i += size) controller.enqueue(all.slice(i, i + size));
                controller.close();
              },
            });
            const messages = [];
            for await (const { message, last } of opened(body)) {
              messages.push([message.text?.length ?? message.n ?? 0, last]);
            }
            counts.push(messages);
          }
          return counts;
        }"""
    )
    assert found == [[[300, False], [2, False], [0, True]]] * 5


def test_every_text_that_a_script_asks_for_is_there(served):
    """Keys that are written out in the scripts; those that are put together are asked for by the other tests."""
    page = served.http("/")[1]
    english = served.http("/explorer/text/en.json")[1]
    scripts = [served.http(f"/{path}")[1] for path in re.findall(r'href="(explorer/js/[^"]+)"', page)]
    keys = {key for script in scripts for key in re.findall(r'\bt\(\s*"([\w.]+)"', script)}
    assert len(keys) > 40
    texts = json.loads(english)
    for key in sorted(keys):
        found = texts
        for part in key.split("."):
            found = found[part]
        assert isinstance(found, str), key


# Counts what is begun and not yet ended, of what runs by itself.
COUNTING = """() => {
  if (window.running) return;
  window.running = new Map();
  for (const [begin, end, once] of [
    ["setTimeout", "clearTimeout", true], ["setInterval", "clearInterval", false],
    ["requestAnimationFrame", "cancelAnimationFrame", true],
  ]) {
    const [begins, ends] = [window[begin].bind(window), window[end].bind(window)];
    window[begin] = (callback, ...rest) => {
      const id = begins((...all) => { if (once) running.delete(begin + id); callback(...all); }, ...rest);
      running.set(begin + id, begin);
      return id;
    };
    window[end] = (id) => { running.delete(begin + id); ends(id); };
  }
}"""


@pytest.mark.parametrize(
    "place",
    ["view=conv&layer=conv_1_2&unit=3", "view=formula&layer=conv_1_2&unit=3,5,5&with-input=1",
     "view=formula&layer=max_pool_1&unit=2", "view=dense&layer=output&unit=1", "view=softmax&layer=softmax&unit=1",
     "view=playground", "view=attribution", "view=compare"],
)  # fmt: skip
def test_nothing_runs_on_after_a_view_closes(visit: Visit, place):
    page = visit.on(TINY)
    page.evaluate(COUNTING)
    page.evaluate("hash => { location.hash = hash; }", f"{TINY}&{place}")
    name = re.search(r"view=(\w+)", place)[1]
    page.wait_for_selector(f'.view-body:not([aria-busy]) [data-view="{name}"]')
    page.keyboard.press("Escape")
    if "with-input" in place:
        page.wait_for_selector('.view-body:not([aria-busy]) [data-view="conv"]')
        page.keyboard.press("Escape")
    expect(page.locator(".view")).to_be_hidden()
    ready(page)
    page.wait_for_function("() => running.size === 0")


def test_an_error_of_the_page_is_not_taken_for_one_of_the_network(visit: Visit):
    page = visit.on(TINY)
    said = page.evaluate(
        """async () => {
          const { layers } = await import("/explorer/js/api.js");
          const broken = () => { throw new TypeError("of its own"); };
          return layers("GetKernels", { model: "tiny_vgg", layer: "conv_1_1" }, broken).catch(String);
        }"""
    )
    assert said == "TypeError: of its own"
