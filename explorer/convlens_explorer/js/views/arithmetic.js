/** One unit's arithmetic, in numbers: what ExplainUnit says, to read. */

import { fixed, placesFor } from "../arithmetic/format.js";
import { css, inkOn } from "../colours.js";
import { el } from "../element.js";
import { figure, symmetric } from "../paint.js";
import { t } from "../text.js";
import { number, shareOf } from "./parts.js";

/** Terms that are listed one by one, at most: a kernel of 15 × 15. */
const MOST_TERMS = 225;

/**
 * @param {import("./asking.js").Explanation} told
 * @param {{channel: number, table: import("../colours.js").Table}} of The input channel whose products are shown, and
 *   the colours of products.
 * @returns {Array<Node | null>}
 */
export function arithmetic(told, of) {
  const writers = { weightedSum, pooling, function: formula, elementwise, selection };
  const lines = writers[told.form]?.(told, of) ?? [];
  return [...lines, el("p.quiet", {}, t("view.network"), " ", number("activation", told.activation))];
}

function weightedSum(told, { channel, table }) {
  const [patch] = told.patches;
  const [channels, rows, columns] = patch.shape;
  const area = rows * columns;
  const { weights, products, channelSums, sum, bias } = told.arithmetic;
  const at = channel - patch.firstChannel;
  const part = (list) => list.slice(at * area, (at + 1) * area);
  const [value, weight, product] = [patch.values, weights, products]
    .map(part)
    .map((list) => ({ list, places: placesOf(list) }));
  const written = ({ list, places }, i) => fixed(list[i], places);
  return [
    el("p", {}, t("formula.products", { channel })),
    terms(
      rows,
      columns,
      product.list,
      table,
      (i) => [el("span", {}, `${written(value, i)} × ${written(weight, i)}`), el("b", {}, written(product, i))],
      (i) => ({ value: value.list[i], weight: weight.list[i], product: product.list[i] }),
    ),
    el("p.arithmetic", {}, t("formula.channelSum"), " = ", number("channel-sum", channelSums[at])),
    el(
      "p.arithmetic",
      {},
      el("span", {}, t("formula.allChannels", { count: channels }), " ", number("sum", sum)),
      el("span", {}, " + ", t("conv.bias"), " ", number("bias", bias)),
      el("span", {}, " = ", number("result", told.result)),
    ),
  ];
}

function placesOf(list) {
  return placesFor(Math.max(...list.map(Math.abs)));
}

function pooling(told, { table }) {
  const [patch] = told.patches;
  const [, rows, columns] = patch.shape;
  const { divisor, sum, argmax } = told.arithmetic;
  const window = terms(
    rows,
    columns,
    patch.values,
    table,
    (i) => el("span", {}, fixed(patch.values[i])),
    (i) => ({ value: patch.values[i] }),
    argmax,
  );
  if (divisor) {
    return [
      window,
      el(
        "p.arithmetic",
        {},
        t("formula.sumOf", { count: patch.values.length }),
        " ",
        number("sum", sum),
        " ÷ ",
        number("divisor", divisor, 0),
        " = ",
        number("result", told.result),
      ),
    ];
  }
  const listed = patch.values.length <= 16 ? patch.values.map((value) => fixed(value)).join(", ") : "…";
  return [window, el("p.arithmetic", {}, `max(${listed}) = `, number("result", told.result))];
}

function formula(told) {
  const [{ values }] = told.patches;
  const { parameters, formula: text } = told.arithmetic;
  const known = { x: values[0], ...parameters };
  const filled = text.replace(/[A-Za-z_]\w*/g, (name) => (name in known ? bracketed(known[name]) : name));
  return [
    el("p.formula", {}, `f(x) = ${text}`),
    el(
      "dl.parameters",
      {},
      Object.entries(known).map(([name, value]) =>
        el(
          "div",
          {},
          el("dt", {}, name),
          el("dd", {}, el("output.number", { dataset: { name, value: String(value) } }, figure(value, 4))),
        ),
      ),
    ),
    el("p.arithmetic", {}, `${filled} = `, number("result", told.result)),
  ];
}

function bracketed(value) {
  return value < 0 ? `(${figure(value, 4)})` : figure(value, 4);
}

function elementwise(told) {
  const { operation } = told.arithmetic;
  return [
    el(
      "p.arithmetic",
      {},
      told.patches.map((patch, i) => [
        i ? ` ${operation} ` : "",
        el("span.operand", {}, number("value", patch.values[0]), el("small", {}, patch.layer || t("formula.constant"))),
      ]),
      " = ",
      number("result", told.result),
    ),
  ];
}

function selection(told) {
  const [{ layer, firstChannel, firstRow, firstColumn, values }] = told.patches;
  return [
    el("p", {}, t("formula.handedOn", { layer, channel: firstChannel, row: firstRow, column: firstColumn })),
    el("p.arithmetic", {}, number("value", values[0]), " = ", number("result", told.result)),
  ];
}

/** A window's terms as a table, coloured by their size. */
function terms(rows, columns, sizes, table, content, data, marked) {
  if (sizes.length > MOST_TERMS) return el("p.quiet", {}, t("formula.tooMany", { count: sizes.length }));
  const finite = sizes.filter(Number.isFinite);
  const range = symmetric(Math.min(...finite, 0), Math.max(...finite, 0));
  const cell = (i) => {
    if (!Number.isFinite(sizes[i])) return el("td.padding", { dataset: data(i) }, content(i));
    const share = shareOf(sizes[i], range);
    const style = { "background-color": css(table, share), color: inkOn(table, share) };
    return el("td", { dataset: data(i), style }, content(i));
  };
  const body = Array.from({ length: rows }, (_, row) =>
    el(
      "tr",
      {},
      Array.from({ length: columns }, (_, column) => {
        const box = cell(row * columns + column);
        box.classList.toggle("marked", row * columns + column === marked);
        return box;
      }),
    ),
  );
  return el(
    "div.terms-frame",
    { tabindex: 0, role: "region", "aria-label": t("formula.terms") },
    el("table.terms", {}, el("tbody", {}, body)),
  );
}
