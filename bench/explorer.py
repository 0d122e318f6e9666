"""How fast the explorer is, in a Chromium on the machine of the server.

Measured in the page itself, by its own clock: the first view, from the navigation until all of Tiny VGG's maps are
painted; a new image, from the click until all of its maps are; and the longest tasks of the page's main thread while a
ResNet-18 opens all its layers and is scrolled through. Each page is a new one with an empty cache, so nothing is known
from before.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

import feature_maps
from machine import machine
from processes import free_ports, http_get, run_child, serving

REPOSITORY = Path(__file__).parents[1]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
GOALS = {"first_view_ms": 1000.0, "new_image_ms": 150.0, "longest_task_ms": 100.0}
_WATCH = """
  window.tasks = [];
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) tasks.push(entry.duration);
  }).observe({ type: "longtask", buffered: true });
  window.until = async (done) => {
    const start = performance.now();
    while (!done()) await new Promise((resolve) => setTimeout(resolve, 1));
    return performance.now() - start;
  };
  window.shown = (image) => {
    const { state, shown } = document.querySelector(".overview")?.dataset ?? {};
    return state === "ready" && (!image || shown === image);
  };
"""


def main(argv: Sequence[str]) -> int:
    """Prints the figures as JSON, medians and the worst of all; exit code 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser's program")
    options = parser.parse_args(argv)
    told = machine("playwright", "onnxruntime")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        models = Path(folder)
        shutil.copytree(REPOSITORY / "models" / "tiny_vgg", models / "tiny_vgg")
        run_child("feature_maps.py", "export", models)
        shutil.copytree(models / "tiny_vgg" / "1" / "samples", models / feature_maps.MODEL / "1" / "samples")
        port, http_port = free_ports(2)
        command = [sys.executable, "-m", "convlens_server", "--models", str(models)]
        command += ["--port", str(port), "--http-port", str(http_port), "--device", "cpu"]
        with serving(command, lambda: http_get(http_port, "/readyz")[0] == 200):
            browser = playwright.chromium.launch(executable_path=options.chromium, args=FLAGS)
            address = f"http://127.0.0.1:{http_port}/"
            turns = [_turn(browser, address) for _ in range(options.repeats)]
            told["chromium"] = browser.version
            browser.close()
    figures = {
        name: {
            "median": round(statistics.median(_flat(turns, name)), 1),
            "worst": round(max(_flat(turns, name)), 1),
            "goal": goal,
        }
        for name, goal in GOALS.items()
    }
    print(json.dumps({"machine": told, "repeats": options.repeats, "figures": figures}, indent=2))
    return int(any(figure["median"] > figure["goal"] for figure in figures.values()))


def _turn(browser: Browser, address: str) -> dict[str, list[float]]:
    page = _page(browser)
    page.goto(f"{address}#model=tiny_vgg&image=espresso")
    page.evaluate("until(() => shown('espresso'))")
    first = page.evaluate("performance.now()")
    names = page.eval_on_selector_all(".thumb", "thumbs => thumbs.map((thumb) => thumb.dataset.image)")
    images = [
        page.evaluate(
            "(name) => { document.querySelector(`[data-image=${name}]`).click(); return until(() => shown(name)); }",
            name,
        )
        for name in names
        if name != "espresso"
    ]
    page.context.close()

    page = _page(browser)
    page.goto(f"{address}#model={feature_maps.MODEL}&image=espresso")
    page.evaluate("until(shown)")
    page.evaluate("tasks.length = 0")
    page.click("#folds")
    page.evaluate(
        """async () => {
          const sheet = document.querySelector(".overview");
          await until(shown);
          for (let x = 0; x < sheet.scrollWidth; x += 300) {
            sheet.scrollLeft = x;
            await new Promise((resolve) => setTimeout(resolve, 100));
          }
          await until(shown);
        }"""
    )
    # Tasks under 50 ms are not told.
    longest = page.evaluate("Math.max(0, ...tasks)")
    page.context.close()
    return {"first_view_ms": [first], "new_image_ms": images, "longest_task_ms": [longest]}


def _page(browser: Browser) -> Page:
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.add_init_script(_WATCH)
    return page


def _flat(turns: list[dict[str, list[float]]], name: str) -> list[Any]:
    return [value for turn in turns for value in turn[name]]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
