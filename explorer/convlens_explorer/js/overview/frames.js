/** Frames around the blocks that are open; their title folds them again. */

import { el } from "../element.js";
import { t } from "../text.js";

const MARGIN = 12;
// Above the heads of nodes, for the title of the innermost frame and of each one around it. Titles stay as large as a
// finger needs, however small the network is seen: at half its size they take twice the room.
const LOWEST_TITLE = 66;
const TITLE = 50;

/** How much room the titles of frames take above the nodes. */
export function crown(network) {
  return network.blocks.length ? LOWEST_TITLE + TITLE * deepest(network) : 0;
}

/**
 * @param {import("../network.js").Network} network
 * @param {Map<string, import("./node.js").NodeView>} views
 * @param {import("./layout.js").Layout} layout
 * @param {(block: string) => void} fold
 * @returns {HTMLElement[]} Outer frames first.
 */
export function frames(network, views, layout, fold) {
  const found = [];
  network.blocks.forEach((block) => {
    const boxes = block.layers.flatMap((name) => layout.boxes.get(name) ?? []);
    const inner = network.blocks.filter((other) => within(other, block, network) && views.has(`block:${other.name}`));
    boxes.push(...inner.map((other) => layout.boxes.get(`block:${other.name}`)));
    if (!boxes.length) return;
    const depth = depthOf(block, network);
    const margin = Math.max(2, MARGIN - 4 * depth);
    const left = Math.min(...boxes.map(({ x }) => x)) - margin;
    const top = Math.min(...boxes.map(({ y }) => y)) - LOWEST_TITLE - TITLE * (deepest(network) - depth);
    const width = Math.max(...boxes.map((box) => box.x + box.width)) + margin - left;
    const height = Math.max(...boxes.map((box) => box.y + box.height)) + margin - top;
    found.push(
      el(
        "div.frame",
        { style: { transform: `translate(${left}px, ${top}px)`, width: `${width}px`, height: `${height}px` } },
        el(
          "button",
          {
            type: "button",
            title: t("overview.fold", { name: block.name }),
            dataset: { block: block.name },
            on: { click: () => fold(block.name) },
          },
          `▾ ${block.name}`,
        ),
      ),
    );
  });
  return found;
}

function deepest(network) {
  return Math.max(...network.blocks.map((block) => depthOf(block, network)));
}

function depthOf(block, network) {
  const outer = network.blocks.find(({ name }) => name === block.parent);
  return outer ? 1 + depthOf(outer, network) : 0;
}

function within(block, outer, network) {
  for (let { parent } = block; parent; parent = network.blocks.find(({ name }) => name === parent)?.parent) {
    if (parent === outer.name) return true;
  }
  return false;
}
