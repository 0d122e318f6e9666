/** The playground: how size, padding, kernel, stride and dilation make a convolution's result, on real numbers. */

import { outputSize, span, unitAround, windowAt } from "../arithmetic/geometry.js";
import { dot, patch } from "../arithmetic/convolve.js";
import { fixed } from "../arithmetic/format.js";
import { el, replace } from "../element.js";
import { Matrix } from "../matrix.js";
import { Playback } from "../playback.js";
import { t } from "../text.js";

/** The lecture's example, repeated where a larger one is asked for. */
const IMAGE_ROW = [0, 1, 1, 0, 1];
const KERNEL = [
  [1, 0, 1],
  [1, 1, 1],
  [0, 0, 1],
];
const START = { input: 5, padding: 0, kernel: 3, stride: 1, dilation: 1 };
const LARGEST_INPUT = 12;
const STEP_MS = 700;

export function title() {
  return t("playground.title");
}

/**
 * @param {HTMLElement} container
 * @param {import("./index.js").Context} context
 */
export function open(container, { store, scope, tables }) {
  const values = settings(store.get("place").options);
  const stage = el("div.playground-stage");
  const sizes = el("p.playground-sizes", { role: "status" });
  const fields = {};
  let drawing = null;
  const show = () => {
    for (const [name, field] of Object.entries(fields)) field.show(values[name], limits(values)[name]);
    drawing?.close();
    drawing = scope.child();
    draw({ stage, sizes, fields, values, scope: drawing, tables });
  };
  const change = (name, value) => {
    Object.assign(values, { [name]: value });
    Object.assign(values, settings(values));
    store.go({ view: "playground", options: asText(values) });
    show();
  };
  for (const name of Object.keys(START)) fields[name] = setting(name, (value) => change(name, value));
  container.append(
    el("p.lead", {}, t("playground.lead")),
    el(
      "div.playground-fields",
      {},
      Object.values(fields).map((field) => field.element),
    ),
    sizes,
    stage,
  );
  show();
  store.subscribe(
    ["place"],
    () => {
      const linked = settings(store.get("place").options);
      if (Object.keys(START).every((name) => linked[name] === values[name])) return;
      Object.assign(values, linked);
      show();
    },
    scope,
  );
  return { numbers: () => ({ ...values, output: sizeOf(values) }) };
}

/** What each setting may be, given the others: lowest and highest. */
function limits({ input, padding, kernel, dilation }) {
  const room = input + 2 * padding;
  return {
    input: [1, LARGEST_INPUT],
    padding: [0, Math.max(0, span(kernel, dilation) - 1)],
    kernel: [1, Math.floor((room - 1) / dilation) + 1],
    stride: [1, Math.max(1, room - span(kernel, dilation) + 1)],
    dilation: [1, kernel > 1 ? Math.max(1, Math.floor((room - 1) / (kernel - 1))) : 1],
  };
}

/** Settings read from a link, or from numbers, each brought within its limits: the image's size comes first. */
function settings(options = {}) {
  const values = { ...START };
  for (const name of Object.keys(START)) {
    const number = Number.parseInt(options[name], 10);
    if (Number.isFinite(number)) values[name] = number;
  }
  values.input = within(values.input, [1, LARGEST_INPUT]);
  values.padding = within(values.padding, [0, LARGEST_INPUT]);
  for (const name of ["kernel", "dilation", "padding", "kernel", "dilation", "stride"]) {
    values[name] = within(values[name], limits(values)[name]);
  }
  return values;
}

function sizeOf({ input, padding, kernel, stride, dilation }) {
  return outputSize(input, padding, padding, kernel, stride, dilation);
}

function within(value, [lowest, highest]) {
  return Math.min(highest, Math.max(lowest, value));
}

function asText(values) {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, String(value)]));
}

/** A slider and a number that say the same. */
function setting(name, onChange) {
  const id = `playground-${name}`;
  const listener = ({ target }) => {
    const value = Number.parseInt(target.value, 10);
    if (Number.isFinite(value)) onChange(within(value, [Number(target.min), Number(target.max)]));
  };
  const slider = el("input", {
    type: "range",
    id: `${id}-slider`,
    "aria-label": t(`playground.${name}`),
    on: { input: listener },
  });
  const number = el("input", { type: "number", id, on: { change: listener } });
  const element = el(
    "div.setting",
    { dataset: { name } },
    el("label", { for: id }, t(`playground.${name}`)),
    slider,
    number,
  );
  const show = (value, [lowest, highest]) => {
    for (const field of [slider, number]) {
      field.min = lowest;
      field.max = highest;
      field.value = value;
    }
  };
  return { element, number, show };
}

function draw({ stage, sizes, fields, values, scope, tables }) {
  const { input, padding, kernel, stride, dilation } = values;
  const output = sizeOf(values);
  const fits = Number.isInteger(output) && output >= 1;
  fields.stride.element.classList.toggle("impossible", !fits);
  fields.stride.number.setAttribute("aria-invalid", String(!fits));
  replace(
    sizes,
    fits
      ? t("playground.sizes", { input, padded: input + 2 * padding, output })
      : t("playground.impossible", {
          padded: input + 2 * padding,
          span: span(kernel, dilation),
          room: input + 2 * padding - span(kernel, dilation),
          stride,
        }),
  );
  sizes.classList.toggle("impossible", !fits);
  const geometry = {
    kernel: [kernel, kernel],
    stride: [stride, stride],
    padding: [padding, padding, padding, padding],
    dilation: [dilation, dilation],
  };
  const image = (_, column) => IMAGE_ROW[column % IMAGE_ROW.length];
  const weights = Array.from(
    { length: kernel * kernel },
    (_, i) => KERNEL[Math.floor(i / kernel) % 3][(i % kernel) % 3],
  );
  const taken = (unit) => patch(image, [input, input], windowAt(geometry, unit[0], unit[1]));
  const most = weights.reduce((sum, weight) => sum + weight, 0) || 1;
  const whole = (value, most) => ({ text: fixed(value, 0), value, share: 0.5 + value / most / 2 });
  const matrix = (key, side, table, cell, more = {}) =>
    new Matrix({ scope, label: t(key), size: [side, side], zoom: 21, table, cell, ...more });
  const pixel = (row, column) => whole(image(row, column), 1);
  const source = matrix("playground.inputMatrix", input, tables.activation, pixel, {
    padding: geometry.padding,
    onPoint: (row, column) => fits && point(unitAround(geometry, [output, output], row, column)),
    onMove: (down, across) => fits && point([unit[0] + down, unit[1] + across]),
  });
  const weight = (row, column) => whole(weights[row * kernel + column], 1);
  const square = matrix("playground.kernelMatrix", kernel, tables.weight, weight);
  replace(
    stage,
    part("playground.inputMatrix", source.element),
    el("span.operator", {}, "∗"),
    part("playground.kernelMatrix", square.element),
  );
  let unit = [0, 0];
  /** @type {(position: number[]) => void} */
  let point = () => {};
  if (!fits) return;
  const sum = (row, column) => whole(dot(taken([row, column]), weights), most);
  const result = matrix("playground.outputMatrix", output, tables.activation, sum, {
    onPoint: (row, column) => point([row, column]),
    onMove: (down, across) => point([unit[0] + down, unit[1] + across]),
  });
  const formula = el("p.arithmetic", { "aria-live": "polite" });
  const at = (position) => {
    unit = position.map((cell) => Math.min(output - 1, Math.max(0, cell)));
    source.show(windowAt(geometry, unit[0], unit[1]));
    result.show({ top: unit[0], left: unit[1], rows: 1, columns: 1, step: [1, 1] });
    const patchValues = taken(unit);
    const terms = patchValues.map((value, i) => `${fixed(value, 0)}×${fixed(weights[i], 0)}`);
    replace(formula, terms.join(" + "), " = ", el("output", {}, fixed(dot(patchValues, weights), 0)));
    formula.setAttribute("aria-live", playback.playing ? "off" : "polite");
  };
  const playback = new Playback({
    scope,
    interval: STEP_MS,
    step: (by) => {
      const next = (unit[0] * output + unit[1] + by + output * output) % (output * output);
      at([Math.floor(next / output), next % output]);
    },
  });
  point = (position) => {
    playback.pause();
    at(position);
  };
  stage.append(
    el("span.operator", {}, "="),
    part("playground.outputMatrix", result.element),
    formula,
    playback.element,
  );
  at([0, 0]);
  playback.begin();
}

function part(key, element) {
  return el("figure", {}, element, el("figcaption", {}, t(key)));
}
