/** Legends: one below each run of neighbouring nodes whose maps share a range of colours. */

import { el } from "../element.js";
import { css } from "../colours.js";
import { figure } from "../paint.js";
import { t } from "../text.js";

const HEIGHT = 34;
const NARROWEST = 62;
// Narrower ones have no room for the number in the middle.
const NARROW = 100;

/**
 * Legends for the nodes of an overview.
 * @param {Iterable<import("./node.js").NodeView>} views
 * @param {import("./layout.js").Layout} layout
 * @param {import("../ranges.js").Ranges} ranges
 * @param {import("../colours.js").Tables} tables
 * @returns {Array<{element: HTMLElement, update: () => void}>} `update` shows what the range is now.
 */
export function legends(views, layout, ranges, tables) {
  return runs(views, ranges).map((run) => {
    const { layer } = run[0].node;
    const [first, last] = [run[0], run[run.length - 1]].map((view) => layout.boxes.get(view.node.id));
    const start = first.x + (first.width - first.content) / 2;
    const end = last.x + (last.width + last.content) / 2;
    const width = Math.max(NARROWEST, end - start);
    const left = (start + end - width) / 2;
    const legend = makeLegend(tables[ranges.table(layer)]);
    legend.element.style.transform = `translate(${left}px, ${first.y + first.height - HEIGHT}px)`;
    legend.element.style.width = `${width}px`;
    legend.element.classList.toggle("is-narrow", width < NARROW);
    legend.element.dataset.layers = run.map((view) => view.node.layer.name).join(" ");
    return { element: legend.element, update: () => legend.update(ranges.of(layer)) };
  });
}

/**
 * A bar of colours with its lowest, middle and highest value.
 * @param {import("../colours.js").Table} table
 */
function makeLegend(table) {
  const stops = Array.from({ length: 17 }, (_, i) => css(table, i / 16)).join(", ");
  const ticks = [0, 0.5, 1].map(() => el("span"));
  const element = el(
    "div.colours",
    {},
    el("div.colours-bar", { style: { background: `linear-gradient(to right, ${stops})` } }),
    el("div.colours-ticks", {}, ticks),
  );
  /** @param {import("../paint.js").Range} range */
  const update = ({ low, high }) => {
    const values = [low, (low + high) / 2, high].map((value) => figure(value, 2));
    ticks.forEach((tick, i) => (tick.textContent = values[i]));
    element.setAttribute("aria-label", t("overview.legend", { low: values[0], high: values[2] }));
    element.setAttribute("role", "img");
  };
  return { element, update };
}

/** Neighbours in a lane, with one range. @returns {Array<Array<import("./node.js").NodeView>>} */
function runs(views, ranges) {
  const found = [];
  const ordered = [...views].sort((a, b) => a.node.lane - b.node.lane || a.node.column - b.node.column);
  let key = "";
  for (const view of ordered) {
    const { node } = view;
    const next = `${node.lane} ${ranges.table(node.layer)} ${ranges.members(node.layer).join()}`;
    if (next !== key || view.shape === "classes") found.push([]);
    found[found.length - 1].push(view);
    key = view.shape === "classes" ? "" : next;
  }
  return found.filter(([view]) => view.shape !== "classes");
}
