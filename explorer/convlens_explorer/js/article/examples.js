/** The lecture's examples, computed on the page. */

import { convolveRows, poolRows } from "../arithmetic/convolve.js";
import { unitAround, windowAt } from "../arithmetic/geometry.js";
import { el } from "../element.js";
import { Matrix } from "../matrix.js";
import { t } from "../text.js";

const IMAGE = Array.from({ length: 5 }, () => [0, 1, 1, 0, 1]);
const KERNEL = [
  [1, 0, 1],
  [1, 1, 1],
  [0, 0, 1],
];
const VALUES = [
  [4, 8, 2, 1, 1, 3],
  [7, 1, 1, 2, 2, 6],
  [2, 2, 3, 8, 1, 9],
  [2, 2, 6, 2, 8, 4],
  [3, 2, 1, 2, 1, 8],
  [1, 1, 1, 3, 6, 1],
];

/** Image, kernel and result; pointing at either matrix moves the window. */
export function convolutionExample(context) {
  const result = convolveRows(IMAGE, KERNEL);
  const geometry = { kernel: [3, 3], stride: [1, 1], padding: [0, 0, 0, 0], dilation: [1, 1] };
  const kernel = numbers(context, t("article.kernel"), KERNEL, context.tables.weight, 1);
  return example(context, geometry, [t("article.convolutionImage"), IMAGE], [t("article.result"), result], kernel);
}

/** Values and the largest of each 2 × 2. */
export function poolingExample(context) {
  const geometry = { kernel: [2, 2], stride: [2, 2], padding: [0, 0, 0, 0], dilation: [1, 1] };
  return example(context, geometry, [t("article.values"), VALUES], [t("article.result"), poolRows(VALUES, 2)]);
}

/** Layer, output shape, and what its parameters are made of: inputs of a unit × units + biases. */
const LECTURE = [
  ["conv_1", "32 × 26 × 26", [9, 32]],
  ["conv_2", "64 × 24 × 24", [288, 64]],
  ["max_pool_1", "64 × 12 × 12", null],
  ["flatten", "9,216", null],
  ["dense_1", "128", [9216, 128]],
  ["output", "10", [128, 10]],
];

/** The lecture network's summary. */
export function lectureNetwork({ store }) {
  const language = store.get("language");
  const written = (value) => value.toLocaleString(language);
  const count = (made) => (made ? (made[0] + 1) * made[1] : 0);
  const total = LECTURE.reduce((sum, [, , made]) => sum + count(made), 0);
  return el(
    "table.summary",
    {},
    el("caption", {}, t("article.table.caption")),
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        ["layer", "shape", "how", "parameters"].map((key) => el("th", { scope: "col" }, t(`article.table.${key}`))),
      ),
    ),
    el(
      "tbody",
      {},
      LECTURE.map(([name, shape, made]) =>
        el(
          "tr",
          {},
          el("th", { scope: "row" }, name),
          el("td", {}, shape),
          el("td", {}, made ? `${written(made[0])} × ${made[1]} + ${made[1]}` : ""),
          el("td", { dataset: { parameters: count(made) } }, written(count(made))),
        ),
      ),
    ),
    el(
      "tfoot",
      {},
      el(
        "tr",
        {},
        el("th", { scope: "row", colspan: 3 }, t("article.table.total")),
        el("td", { dataset: { parameters: total } }, written(total)),
      ),
    ),
  );
}

function example(context, geometry, [sourceName, source], [resultName, result], kernel) {
  const output = [result.length, result[0].length];
  const show = (unit) => {
    const at = unit.map((cell, axis) => Math.min(output[axis] - 1, Math.max(0, cell)));
    before.show(windowAt(geometry, at[0], at[1]));
    after.show({ top: at[0], left: at[1], rows: 1, columns: 1, step: [1, 1] });
    current = at;
  };
  const onMove = (down, across) => show([current[0] + down, current[1] + across]);
  const most = Math.max(...source.flat());
  const before = numbers(context, sourceName, source, context.tables.activation, most, {
    onPoint: (row, column) => show(unitAround(geometry, output, row, column)),
    onMove,
  });
  const after = numbers(context, resultName, result, context.tables.activation, Math.max(...result.flat()), {
    onPoint: (row, column) => show([row, column]),
    onMove,
  });
  let current = [0, 0];
  show(current);
  const parts = kernel
    ? [
        [sourceName, before],
        [t("article.kernel"), kernel],
        [resultName, after],
      ]
    : [
        [sourceName, before],
        [resultName, after],
      ];
  return el(
    "div.example",
    { role: "group", "aria-label": t("article.example") },
    parts.map(([name, matrix]) => el("figure", {}, matrix.element, el("figcaption", {}, name))),
  );
}

function numbers({ scope }, label, rows, table, most, more = {}) {
  return new Matrix({
    scope,
    label,
    size: [rows.length, rows[0].length],
    table,
    cell: (row, column) => ({
      text: String(rows[row][column]),
      value: rows[row][column],
      share: 0.5 + rows[row][column] / most / 2,
    }),
    ...more,
  });
}
