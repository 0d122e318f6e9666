/** A convolution's channel: each input map, its kernel, the intermediate result, and their sum with the bias. */

import { kernelText } from "../arithmetic/format.js";
import { geometryOf, unitAround, windowAt } from "../arithmetic/geometry.js";
import { el, replace } from "../element.js";
import { figure } from "../paint.js";
import { Plane } from "../plane.js";
import { t } from "../text.js";
import { drawnAnew } from "./anew.js";
import { Asking, newest, saying, unitOf } from "./asking.js";
import { channelPicker, explainButton, FieldBox, legend, MapBox, number, pageOf, pager } from "./parts.js";
import { intermediatesOf, shared, stacked } from "./planes.js";
import { Sweep } from "./sweep.js";

const KINDS = ["conv"];
/** Rows on a page: what fits on a screen. */
const ROWS = 8;

export function title(context) {
  const { name, channel } = unitOf(context, KINDS);
  return t("view.titleOf", { layer: name, channel });
}

/** @param {HTMLElement} container @param {import("./index.js").Context} context */
export function open(container, context) {
  return drawnAnew(container, context, ["page"], draw);
}

async function draw(container, context) {
  const { store, scope, network, ranges, tables } = context;
  const { layer, name, channel, options } = unitOf(context, KINDS);
  const source = network.layer(layer.inputs[0]);
  const asking = new Asking(context);
  const { first, count } = inputsOf(layer, source, channel);
  const pages = Math.ceil(count / ROWS);
  const page = pageOf(options.page, pages);
  const from = first + page * ROWS;
  const channels = Array.from({ length: Math.min(ROWS, first + count - from) }, (_, i) => from + i);
  const [inputs, [output], kernels, image] = await Promise.all([
    asking.planes(source, channels),
    asking.planes(layer, [channel]),
    asking.kernels(layer, channel),
    asking.planes(network.input, network.input.shape[0] === 1 ? [0] : [0, 1, 2]),
  ]);
  const geometry = geometryOf(layer);
  const area = geometry.kernel[0] * geometry.kernel[1];
  const weightsOf = (input) => kernels.weights.subarray((input - first) * area, (input - first + 1) * area);
  const intermediates = await intermediatesOf(inputs, channels.map(weightsOf), geometry, layer.shape.slice(1), scope);

  const range = {
    input: ranges.of(source),
    intermediate: shared(intermediates),
    kernel: shared([Plane.of(kernels.weights, 1, kernels.weights.length)]),
    output: ranges.of(layer),
  };
  const sourceTable = source.kind === "input" ? tables.input : tables.activation;
  const size = layer.shape.slice(1);
  const readout = el("div.readout", { role: "status" });
  const field = new FieldBox(network, image);
  let unit = [0, 0];
  // Where the link names no unit, one where something was found.
  const telling = output.strongest();
  const placed = () => {
    const { row = telling[0], column = telling[1] } = store.get("place");
    return [Math.min(size[0] - 1, row), Math.min(size[1] - 1, column)];
  };

  const rows = channels.map((input, i) => {
    const openFormula = () => {
      const [row, column] = placed();
      store.go({ view: "formula", layer: name, channel, row, column, options: { input: String(input) } });
    };
    const onInput = (row, column) => point(unitAround(geometry, size, row, column));
    const sum = el("output.number", { dataset: { name: "channel-sum", channel: input } });
    const boxes = {
      input: new MapBox({
        scope,
        label: t("view.mapOf", { layer: source.name, channel: input }),
        plane: inputs[i],
        table: sourceTable,
        range: range.input,
        onPoint: onInput,
      }),
      intermediate: new MapBox({
        scope,
        label: t("conv.intermediateOf", { channel: input }),
        plane: intermediates[i],
        table: tables.activation,
        range: range.intermediate,
        onPoint: (row, column) => point([row, column]),
      }),
    };
    const element = el(
      "li.conv-row",
      { dataset: { channel: input } },
      boxes.input.element,
      kernelButton(scope, geometry, input, weightsOf(input), tables.weight, range.kernel),
      boxes.intermediate.element,
      el(
        "div.conv-sum",
        {},
        sum,
        el("button.open", { type: "button", on: { click: openFormula } }, t("conv.showFormula")),
      ),
    );
    scope.listen(element, "click", (event) => {
      if (!event.target.closest("button")) openFormula();
    });
    return { element, boxes, sum };
  });
  const result = new MapBox({
    scope,
    label: t("view.mapOf", { layer: name, channel }),
    plane: output,
    table: tables.activation,
    range: range.output,
    onPoint: (row, column) => point([row, column]),
  });

  const ask = newest(
    async (at) => {
      const told = await asking.explain({ layer: name, channel, row: at[0], column: at[1] });
      if (scope.closed) return;
      const { channelSums, sum, bias } = told.arithmetic;
      rows.forEach((row, i) => {
        const value = channelSums[channels[i] - told.patches[0].firstChannel];
        row.sum.textContent = figure(value, 4);
        row.sum.dataset.value = String(value);
      });
      replace(
        readout,
        el("p", {}, t("conv.unit", { row: at[0], column: at[1] })),
        el(
          "p.arithmetic",
          {},
          el("span", {}, t("conv.sumOf", { count }), " ", number("sum", sum)),
          el("span", {}, " + ", t("conv.bias"), " ", number("bias", bias)),
          el("span", {}, " = ", number("result", told.result)),
        ),
        el("p.quiet", {}, t("view.network"), " ", number("activation", told.activation)),
      );
      Object.assign(readout.dataset, { row: at[0], column: at[1] });
      field.show(told.field);
    },
    saying(context, readout),
  );
  const show = (at) => {
    unit = at;
    const window = windowAt(geometry, at[0], at[1]);
    const cell = { top: at[0], left: at[1], rows: 1, columns: 1, step: [1, 1] };
    for (const { boxes } of rows) {
      boxes.input.show(window);
      boxes.intermediate.show(cell);
    }
    result.show(cell);
  };
  const stage = el("div.conv");
  const sweep = new Sweep({
    scope,
    size,
    onStep: show,
    onReveal: (to) => {
      for (const { boxes } of rows) boxes.intermediate.uncover(to);
      result.uncover(to);
    },
    onRun: (running) => stage.classList.toggle("sweeping", running),
    onEnd: (at) => ask(at),
  });
  /** Shows a unit that was pointed at. */
  function point(at) {
    sweep.finish();
    if (at.join() === unit.join() && readout.childElementCount) return;
    show(at);
    ask(at);
    store.go({ ...store.get("place"), row: at[0], column: at[1] });
  }
  store.subscribe(["place"], () => store.get("place").view === "conv" && point(placed()), scope);

  container.append(
    el(
      "div.view-bar",
      {},
      channelPicker(context, layer, channel, { placeOf: (to) => ({ view: "conv", layer: name, channel: to }) }),
      sweep.element,
      el(
        "button",
        {
          type: "button",
          on: { click: () => store.go({ view: "maximizing", layer: name, channel, options: { from: "conv" } }) },
        },
        t("maximizing.open"),
      ),
      explainButton(context, "convolution"),
    ),
    replace(
      stage,
      el(
        "div.conv-heads",
        { "aria-hidden": "true" },
        el("span", {}, t("conv.input", { layer: source.name })),
        el("span", {}, t("conv.kernels")),
        el("span", {}, t("conv.intermediate")),
        el("span", {}, t("conv.sum")),
      ),
      el(
        "ol.conv-rows",
        {},
        rows.map((row) => row.element),
      ),
      pager(page, pages, (to) => store.go({ ...store.get("place"), options: { page: String(to) } })),
      el(
        "div.conv-result",
        {},
        el("span.operator", { "aria-hidden": "true" }, "Σ"),
        el(
          "span.bias",
          { tabindex: 0, title: t("conv.biasIs", { bias: figure(kernels.bias, 4) }) },
          t("conv.plusBias", { bias: figure(kernels.bias, 3) }),
        ),
        el("figure", {}, result.element, el("figcaption", {}, t("view.mapOf", { layer: name, channel }))),
        readout,
        field.element,
      ),
    ),
    el("p.hint", {}, t("conv.hint")),
    el(
      "div.legends",
      {},
      legend(t("conv.inputLegend"), sourceTable, range.input),
      legend(t("conv.kernelLegend"), tables.weight, range.kernel),
      legend(t("conv.intermediateLegend"), tables.activation, range.intermediate),
      legend(t("conv.outputLegend"), tables.activation, range.output),
    ),
  );
  show(placed());
  ask(placed());
  sweep.begin(placed());
  return {
    numbers: () => ({
      layer: name,
      channel,
      inputChannels: channels,
      inputs: stacked(inputs),
      kernels: { shape: [count, ...geometry.kernel], values: kernels.weights },
      intermediates: stacked(intermediates),
      bias: kernels.bias,
      output: stacked([output]),
    }),
  };
}

/** Which input channels an output channel takes: those of its group. */
function inputsOf(layer, source, channel) {
  const groups = layer.groups || 1;
  const count = source.shape[0] / groups;
  return { first: Math.floor(channel / (layer.shape[0] / groups)) * count, count };
}

/** A kernel as a small map; hovering or focusing it tells its weights. */
function kernelButton(scope, geometry, channel, weights, table, range) {
  const text = t("conv.kernelIs", { weights: kernelText(weights, geometry.kernel[1]) });
  const box = new MapBox({
    scope,
    label: t("conv.kernelOf", { channel }),
    plane: Plane.of(weights, geometry.kernel[0], geometry.kernel[1]),
    table,
    range,
  });
  return el(
    "div.kernel",
    { tabindex: 0, "aria-label": text, role: "group" },
    box.element,
    el("span.chip", { role: "tooltip" }, text),
  );
}
