/** Many numbers in one row, and the lines from the weightiest of them to the unit that they make. */

import { css } from "../colours.js";
import { el, svg } from "../element.js";
import { figure, paint } from "../paint.js";
import { Plane } from "../plane.js";
import { onPointing } from "../pointing.js";
import { t } from "../text.js";
import { cellAt } from "./parts.js";

/** Pixels of a strip; where there are more numbers, each shows the one of largest magnitude among several. */
const WIDEST = 2048;
/** The bundle's coordinates. */
const WIDTH = 1000;
const HEIGHT = 110;

/**
 * One row of numbers.
 * @param {import("../scope.js").Scope} scope
 * @param {string} name
 * @param {number[]} values
 * @param {{table: import("../colours.js").Table, range: import("../paint.js").Range}} look
 * @param {(index: number) => void} onPoint
 */
export function strip(scope, name, values, { table, range }, onPoint) {
  const canvas = el("canvas", { role: "img", "aria-label": name });
  const cursor = el("span.strip-cursor", { "aria-hidden": "true" });
  const page = el("span.strip-part", { "aria-hidden": "true" });
  const box = el("div.strip", {}, canvas, page, cursor);
  paint(canvas, Plane.of(gathered(values), 1, Math.min(values.length, WIDEST)), table, range);
  onPointing(scope, box, (event) => onPoint(cellAt(box, event, { height: 1, width: values.length })[1]));
  return {
    element: el("div.strip-row", {}, el("span.strip-name", {}, name), box),
    mark(index) {
      cursor.style.left = `${((index + 0.5) / values.length) * 100}%`;
    },
    part(from, to) {
      page.hidden = to - from >= values.length;
      page.style.left = `${(from / values.length) * 100}%`;
      page.style.width = `${((to - from) / values.length) * 100}%`;
    },
  };
}

function gathered(values) {
  if (values.length <= WIDEST) return values;
  const columns = new Float32Array(WIDEST);
  values.forEach((value, i) => {
    const column = Math.floor((i / values.length) * WIDEST);
    if (Math.abs(value) > Math.abs(columns[column])) columns[column] = value;
  });
  return columns;
}

/** Lines from positions of a strip to one unit: as wide as their products are large, in the colour of their sign. */
export function bundle(scope, { positions, total, products, weights, tables, onPoint }) {
  const most = Math.abs(products[positions[0]] ?? 0) || 1;
  const lines = positions.map((index) => {
    const x = ((index + 0.5) / total) * WIDTH;
    const share = products[index] / most;
    const line = svg("path.edge", {
      d: `M ${x} 0 C ${x} ${HEIGHT * 0.6}, ${WIDTH / 2} ${HEIGHT * 0.4}, ${WIDTH / 2} ${HEIGHT}`,
      fill: "none",
      stroke: css(tables.activation, share > 0 ? 0.85 : 0.15),
      "stroke-width": 1 + 4 * Math.abs(share),
      "data-index": index,
    });
    line.append(svg("title", {}, t("dense.edge", { weight: figure(weights[index], 4) })));
    scope.listen(line, "pointerenter", () => onPoint(index));
    return { index, line };
  });
  const drawn = svg(
    "svg.bundle",
    {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": t("dense.edges", { count: positions.length }),
    },
    lines.map(({ line }) => line),
  );
  return {
    element: el("div.bundle-box", {}, drawn, el("span.unit-dot", { "aria-hidden": "true" }, "Σ")),
    mark(index) {
      for (const { index: own, line } of lines) line.classList.toggle("marked", own === index);
    },
  };
}
