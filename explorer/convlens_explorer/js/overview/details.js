/** The figures under a layer's name: what it is made of, and what it saves against a fully connected layer. */

import { el } from "../element.js";
import { hasMaps } from "../network.js";
import { t } from "../text.js";

/** @param {import("./nodes.js").Node} node */
export function details({ layer, block }) {
  const lines = [["shape", dimensions(layer)]];
  if (!block) {
    if (layer.kernel.length) lines.push(["kernel", windowOf(layer)]);
    if (layer.parameters) lines.push(["parameters", short(layer.parameters)]);
    if (layer.connections && layer.kind !== "input") {
      lines.push(["connections", short(layer.connections)]);
      if (hasMaps(layer) && layer.denseConnections > layer.connections) {
        lines.push(["dense", short(layer.denseConnections)]);
      }
    }
  }
  return el(
    "dl.figures",
    {},
    lines.map(([name, value]) => [
      el("dt", { title: t(`overview.${name}Long`) }, t(`overview.${name}`)),
      el("dd", {}, value),
    ]),
  );
}

/** "62 × 62 × 10": height, width, channels. */
export function dimensions({ shape }) {
  return (shape.length === 3 ? [shape[1], shape[2], shape[0]] : shape).join(" × ");
}

/** "3 × 3 /2 +1": window, stride, padding where they are not what goes without saying; dilation behind "·". */
function windowOf({ kernel, stride, padding, dilation }) {
  const both = (pair) => (pair[0] === pair[1] ? String(pair[0]) : pair.join("×"));
  let text = kernel.join("×");
  if (stride.some((step) => step !== 1)) text += ` /${both(stride)}`;
  if (padding.some((edge) => edge))
    text += ` +${padding.every((edge) => edge === padding[0]) ? padding[0] : padding.join(",")}`;
  if (dilation.some((step) => step !== 1)) text += ` ·${both(dilation)}`;
  return text;
}

/** A count in three digits: 47.7 M. */
export function short(count) {
  const [size, unit] = [
    [1e12, " T"],
    [1e9, " G"],
    [1e6, " M"],
    [1e4, " k"],
  ].find(([least]) => count >= Number(least)) ?? [1, ""];
  const value = unit === " k" ? count / 1000 : count / Number(size);
  return (unit ? String(+value.toPrecision(3)) : count.toLocaleString("en")) + unit;
}
