/** A unit of a fully connected layer: all that goes in, each times its weight, their sum and the bias. */

import { el, replace } from "../element.js";
import { channelsOf, hasMaps } from "../network.js";
import { figure, symmetric } from "../paint.js";
import { Plane } from "../plane.js";
import { t } from "../text.js";
import { Asking, unitOf } from "./asking.js";
import { Unable } from "./index.js";
import { channelPicker, explainButton, legend, MapBox, number, pageOf, pager } from "./parts.js";
import { bundle, strip } from "./strip.js";

const MAPS = 16;
const SHOWN = ["value", "weight", "product"];

export function title(context) {
  const { layer, name, channel } = unitOf(context);
  return t("dense.titleOf", { layer: name, unit: nameOf(context.network, layer, channel) });
}

/** @param {HTMLElement} container @param {import("./index.js").Context} context */
export async function open(container, context) {
  const { store, scope, network, tables } = context;
  const { layer, name, channel, options } = unitOf(context);
  const asking = new Asking(context);
  if (layer.kind !== "dense") {
    await openBehind(asking, store, network, layer, channel);
    return null;
  }
  const told = await asking.explain({ layer: name, channel });
  const { weights, products, sum, bias, largest } = told.arithmetic;
  const { values, layer: sourceName } = told.patches[0];
  const source = mapsBefore(network, network.layer(sourceName), values.length);
  const lists = { value: values, weight: weights, product: products };
  const looks = {
    value: { table: tables.activation, range: extent(values) },
    weight: { table: tables.weight, range: extent(weights) },
    product: { table: tables.activation, range: extent(products) },
  };
  const unitName = t("dense.titleOf", { layer: name, unit: nameOf(network, layer, channel) });
  const chip = el("p.chip-line", { role: "status" });
  const stage = el("div.dense-maps");
  const strips = SHOWN.map((key) => strip(scope, t(`dense.${key}s`), lists[key], looks[key], (index) => point(index)));
  const edges = bundle(scope, {
    positions: largest,
    total: values.length,
    products,
    weights,
    tables,
    onPoint: (index) => point(index),
  });
  let boxes = [];
  let drawing = scope.child();

  const where = (index) => {
    const area = source.height * source.width;
    return {
      channel: Math.floor(index / area),
      row: Math.floor((index % area) / source.width),
      column: index % source.width,
    };
  };
  const whereText = (index) =>
    source.maps
      ? t("dense.at", { layer: source.name, ...where(index) })
      : t("dense.unitAt", { layer: source.name, index });
  /** Points out one input: in its map, in the strips, among the edges, and in words. */
  function point(index) {
    const at = where(index);
    for (const { first, box } of boxes) {
      box.show(first === at.channel ? { top: at.row, left: at.column, rows: 1, columns: 1, step: [1, 1] } : null);
    }
    for (const one of strips) one.mark(index);
    edges.mark(index);
    Object.assign(chip.dataset, { index, value: values[index], weight: weights[index], product: products[index] });
    replace(
      chip,
      `${whereText(index)}: `,
      t("dense.term", {
        value: figure(values[index], 4),
        weight: figure(weights[index], 4),
        product: figure(products[index], 4),
      }),
    );
  }

  const draw = () => {
    drawing.close();
    drawing = scope.child();
    const { options: now = {} } = store.get("place");
    const show = SHOWN.includes(now.show) ? now.show : "value";
    const pages = Math.ceil(source.channels / MAPS);
    const page = pageOf(now.page, pages);
    const area = source.height * source.width;
    const channels = Array.from({ length: Math.min(MAPS, source.channels - page * MAPS) }, (_, i) => page * MAPS + i);
    const go = (change) => store.go({ ...store.get("place"), options: { ...now, ...change } });
    boxes = channels.map((first) => {
      const numbers = lists[show].slice(first * area, (first + 1) * area);
      const padded = numbers.length < area ? [...numbers, ...new Array(area - numbers.length).fill(0)] : numbers;
      const box = new MapBox({
        scope: drawing,
        label: source.maps ? t("view.mapOf", { layer: source.name, channel: first }) : source.name,
        plane: Plane.of(padded, source.height, source.width),
        ...looks[show],
        onPoint: (row, column) => point(Math.min(values.length - 1, first * area + row * source.width + column)),
      });
      return { first, box };
    });
    for (const one of strips) one.part(page * MAPS * area, Math.min(values.length, (page + 1) * MAPS * area));
    replace(
      stage,
      el(
        "div.dense-choice",
        { role: "radiogroup", "aria-label": t("dense.show") },
        SHOWN.map((key) =>
          el(
            "label",
            {},
            el("input", {
              type: "radio",
              name: "dense-show",
              checked: key === show,
              on: { change: () => go({ show: key }) },
            }),
            t(`dense.${key}s`),
          ),
        ),
      ),
      el(
        "div.dense-grid",
        { dataset: { maps: source.channels, show } },
        boxes.map(({ box, first }) =>
          el("figure", {}, box.element, source.maps ? el("figcaption", {}, String(first)) : null),
        ),
      ),
      pager(page, pages, (to) => go({ page: String(to) })),
      legend(t(`dense.${show}s`), looks[show].table, looks[show].range),
    );
  };

  const softmax = network
    .targets(name)
    .map((target) => network.layer(target))
    .find((target) => target.kind === "softmax");
  container.append(
    el(
      "div.view-bar",
      {},
      channelPicker(context, layer, channel, { names: labelsOf(network, layer) }),
      softmax &&
        el(
          "button",
          { type: "button", on: { click: () => store.go({ view: "softmax", layer: softmax.name, channel }) } },
          t("dense.toSoftmax"),
        ),
      explainButton(context, "dense"),
    ),
    stage,
    el("h3", {}, t("dense.flattened", { count: values.length })),
    el(
      "div.strips",
      {},
      strips.map(({ element }) => element),
    ),
    edges.element,
    chip,
    el(
      "p.arithmetic",
      {},
      el("span", {}, t("dense.sumOf", { count: values.length }), " ", number("sum", sum)),
      el("span.bias", {}, " + ", t("conv.bias"), " ", number("bias", bias)),
      el("span", {}, " = ", number("result", told.result)),
      el("span.quiet", {}, ` (${unitName})`),
    ),
    el("p.quiet", {}, t("view.network"), " ", number("activation", told.activation)),
    el("h3", {}, t("dense.largest")),
    largestTable(largest, { values, weights, products }, whereText, point),
  );
  draw();
  const start = Number.parseInt(options.input ?? "", 10);
  point(start >= 0 && start < values.length ? start : (largest[0] ?? 0));
  let drawn = JSON.stringify(options);
  store.subscribe(
    ["place"],
    () => {
      const now = JSON.stringify(store.get("place").options ?? {});
      if (store.get("place").view !== "dense" || now === drawn) return;
      drawn = now;
      draw();
    },
    scope,
  );
  return { numbers: () => ({ layer: name, unit: channel, values, weights, products, sum, bias, result: told.result }) };
}

/** Opens the dense layer that takes a flattened one, at its strongest unit, with the value that was clicked pointed out. */
async function openBehind(asking, store, network, layer, channel) {
  let next = layer;
  while (next && next.kind !== "dense") next = network.layer(network.targets(next.name)[0]);
  if (!next) throw new Unable(t("dense.none", { layer: layer.name }));
  const values = await asking.values(next);
  store.go({
    view: "dense",
    layer: next.name,
    channel: values.indexOf(Math.max(...values)),
    options: { input: String(channel) },
  });
}

/** The maps that were flattened into a dense layer's input; the units themselves if there were none. */
function mapsBefore(network, layer, count) {
  let from = layer;
  while (from && !hasMaps(from) && from.inputs.length === 1 && network.layer(from.inputs[0])?.units === count) {
    from = network.layer(from.inputs[0]);
  }
  if (from && hasMaps(from) && from.units === count && from.shape[1] * from.shape[2] > 1) {
    return { maps: true, name: from.name, channels: from.shape[0], height: from.shape[1], width: from.shape[2] };
  }
  const width = Math.min(count, 32);
  return { maps: false, name: layer?.name ?? "", channels: 1, height: Math.ceil(count / width), width };
}

function labelsOf(network, layer) {
  return channelsOf(layer) === network.labels.length ? network.labels : undefined;
}

function nameOf(network, layer, unit) {
  return labelsOf(network, layer)?.[unit] ?? String(unit);
}

function extent(values) {
  let most = 0;
  for (const value of values) most = Math.max(most, Math.abs(value));
  return symmetric(-most, most);
}

function largestTable(positions, { values, weights, products }, whereText, point) {
  const head = ["where", "value", "weight", "product"];
  return el(
    "div.table-frame",
    { tabindex: 0, role: "region", "aria-label": t("dense.largest") },
    el(
      "table.largest",
      {},
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          head.map((key) => el("th", { scope: "col" }, t(`dense.${key}`))),
        ),
      ),
      el(
        "tbody",
        {},
        positions.map((index) =>
          el(
            "tr",
            { dataset: { index }, on: { pointerenter: () => point(index) } },
            el(
              "th",
              { scope: "row" },
              el(
                "button.link",
                { type: "button", on: { click: () => point(index), focus: () => point(index) } },
                whereText(index),
              ),
            ),
            [values, weights, products].map((list, i) => el("td", {}, number(head[i + 1], list[index]))),
          ),
        ),
      ),
    ),
  );
}
