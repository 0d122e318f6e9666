/** One unit after the other: the values that go into it, the arithmetic, and the map that it makes. */

import { sectionOf } from "../article/sections.js";
import { geometryOf, unitAround } from "../arithmetic/geometry.js";
import { el, replace } from "../element.js";
import { Matrix } from "../matrix.js";
import { channelsOf, hasMaps, INPUT } from "../network.js";
import { symmetric } from "../paint.js";
import { Plane } from "../plane.js";
import { Playback } from "../playback.js";
import { t } from "../text.js";
import { arithmetic } from "./arithmetic.js";
import { drawnAnew } from "./anew.js";
import { Asking, newest, saying, unitOf } from "./asking.js";
import { cellsOf, channelPicker, explainButton, FieldBox, legend, painted } from "./parts.js";

const STEP_MS = 250;
/** Columns in which the units of a layer without positions are laid, at most. */
const MOST_COLUMNS = 16;

export function title(context) {
  const { layer, name, channel, options } = unitOf(context);
  if (options.input !== undefined) return t("formula.titleOfInput", { layer: name, channel, input: options.input });
  if (!hasMaps(layer)) return t("dense.titleOf", { layer: name, unit: String(channel) });
  return t("view.titleOf", { layer: name, channel });
}

/** @param {HTMLElement} container @param {import("./index.js").Context} context */
export function open(container, context) {
  return drawnAnew(container, context, ["input"], draw);
}

async function draw(container, context) {
  const { store, scope, network, tables } = context;
  const { layer, name, channel, options } = unitOf(context);
  const asking = new Asking(context);
  const flat = !hasMaps(layer);
  const size = flat ? laid(channelsOf(layer)) : layer.shape.slice(1);
  const target = await mapOf(asking, layer, channel);
  const first = target.strongest();
  const unitAt = ([row, column]) =>
    flat ? { layer: name, channel: row * size[1] + column } : { layer: name, channel, row, column };
  /** @returns {[number, number]} */
  const placed = () => {
    // Where the link names no unit, one where something was found.
    const { row = first[0], column = first[1] } = store.get("place");
    if (flat) return [Math.floor(channel / size[1]), channel % size[1]];
    return [Math.min(size[0] - 1, row), Math.min(size[1] - 1, column)];
  };
  const begun = await asking.explain(unitAt(placed()));
  const asked = Number.parseInt(options.input ?? "", 10);
  const channelOf = (patch) =>
    patch.shape[0] > 1 && asked >= patch.firstChannel && asked < patch.firstChannel + patch.shape[0]
      ? asked
      : patch.firstChannel;
  const before = begun.patches.filter((patch) => network.layer(patch.layer));
  const [image, ...planes] = await Promise.all([
    asking.planes(network.input, network.input.shape[0] === 1 ? [0] : [0, 1, 2]),
    ...before.map((patch) => mapOf(asking, network.layer(patch.layer), channelOf(patch))),
  ]);

  const panes = before.map((patch, i) =>
    pane(context, network.layer(patch.layer), channelOf(patch), planes[i], {
      padding: layer.padding,
      outside: begun.form === "pooling" && !begun.arithmetic.divisor ? "−∞" : "0",
      onPoint: (row, column) => point(unitAround(geometryOf(layer), size, row, column)),
      onMove: (down, across) => point([unit[0] + down, unit[1] + across]),
    }),
  );
  const result = pane(context, layer, channel, target, {
    onPoint: (row, column) => point([row, column]),
    onMove: (down, across) => point([unit[0] + down, unit[1] + across]),
  });
  const field = new FieldBox(network, image);
  const sums = el("div.sums", { role: "region", "aria-label": t("formula.arithmetic") });
  const say = saying(context, sums);
  let unit = placed();

  const tell = newest(
    async (at) => {
      const told = await asking.explain(unitAt(at));
      if (scope.closed) return;
      let next = 0;
      for (const patch of told.patches) {
        if (network.layer(patch.layer)) panes[next++]?.show(patch);
      }
      replace(sums, arithmetic(told, { channel: channelOf(told.patches[0]), table: tables.activation }));
      Object.assign(sums.dataset, { form: told.form, row: at[0], column: at[1] });
      field.show(told.field);
    },
    (error) => {
      playback.pause();
      say(error);
    },
  );
  const move = (at) => {
    unit = at.map((cell, axis) => Math.min(size[axis] - 1, Math.max(0, cell)));
    result.matrix.show({ top: unit[0], left: unit[1], rows: 1, columns: 1, step: [1, 1] });
    return tell(unit);
  };
  /** Goes to a unit that was pointed at, and lets the link say so. */
  const point = (at) => {
    playback.pause();
    move(at);
    if (!flat) store.go({ ...store.get("place"), row: unit[0], column: unit[1] });
  };
  const cells = size[0] * size[1];
  const playback = new Playback({
    scope,
    interval: STEP_MS,
    step: (by) => {
      const next = (unit[0] * size[1] + unit[1] + by + cells) % cells;
      move([Math.floor(next / size[1]), next % size[1]]);
    },
  });
  store.subscribe(
    ["place"],
    () => {
      const at = placed();
      if (store.get("place").view === "formula" && !playback.playing && at.join() !== unit.join()) move(at);
    },
    scope,
  );

  container.append(
    el(
      "div.view-bar",
      {},
      picker(context, layer, channel, options),
      playback.element,
      explainButton(context, sectionOf(layer.kind)),
    ),
    el(
      "div.formula-stage",
      {},
      panes.map(({ element }) => element),
      el("div.formula-middle", {}, sums, field.element),
      result.element,
    ),
    el("p.hint", {}, t("formula.hint")),
    el(
      "div.legends",
      {},
      [...panes, result].map(({ key }) => key),
    ),
  );
  await move(unit);
  if (!flat && store.get("place").row === undefined) playback.begin();
  return {
    numbers: () => ({
      layer: name,
      channel,
      output: { shape: [target.height, target.width], values: target.values },
      ...Object.fromEntries(
        panes.map(({ label, plane }) => [label, { shape: [plane.height, plane.width], values: plane.values }]),
      ),
    }),
  };
}

function picker(context, layer, channel, options) {
  const { store, network } = context;
  if (options.input === undefined) {
    return channelPicker(context, layer, channel);
  }
  const source = network.layer(layer.inputs[0]);
  const placeOf = (to) => ({ ...store.get("place"), options: { input: String(to) } });
  return channelPicker(context, source, Number(options.input), { placeOf });
}

/** Rows and columns in which so many units are laid: full rows, as long as may be. */
function laid(count) {
  for (let columns = Math.min(MOST_COLUMNS, count); columns > 1; columns--) {
    if (count % columns === 0) return [count / columns, columns];
  }
  return [Math.ceil(count / MOST_COLUMNS), MOST_COLUMNS];
}

async function mapOf(asking, layer, channel) {
  if (hasMaps(layer)) return (await asking.planes(layer, [channel]))[0];
  const values = await asking.values(layer);
  const [rows, columns] = laid(values.length);
  const padded = new Float32Array(rows * columns);
  padded.set(values);
  return Plane.of(padded, rows, columns);
}

/**
 * A map as a matrix.
 * @param {import("./index.js").Context} context
 * @param {import("../network.js").Layer} layer
 * @param {number} channel
 * @param {Plane} plane Of the channel.
 * @param {{padding?: number[], outside?: string, onPoint: (row: number, column: number) => void, onMove: (down: number, across: number) => void}} options
 *   As of Matrix.
 */
function pane({ scope, ranges, tables }, layer, channel, plane, { padding, outside, onPoint, onMove }) {
  const flat = !hasMaps(layer);
  const table = layer.kind === INPUT ? tables.input : tables.activation;
  const range = flat ? symmetric(plane.low, plane.high) : ranges.of(layer);
  const label = flat ? layer.name : t("view.mapOf", { layer: layer.name, channel });
  const matrix = new Matrix({
    scope,
    label,
    size: [plane.height, plane.width],
    table,
    cell: cellsOf(plane, range),
    padding: padding?.length ? padding : undefined,
    outside,
    overview: painted(plane, table, range),
    onPoint,
    onMove,
  });
  const show = (patch) => {
    if (flat) {
      const [row, column] = [Math.floor(patch.firstChannel / plane.width), patch.firstChannel % plane.width];
      matrix.show({ top: row, left: column, rows: 1, columns: 1, step: [1, 1] });
      return;
    }
    const [, rows, columns] = patch.shape;
    matrix.show({ top: patch.firstRow, left: patch.firstColumn, rows, columns, step: patch.step });
  };
  return {
    element: el("figure.pane", {}, el("figcaption", {}, label), matrix.element),
    matrix,
    show,
    plane,
    label,
    key: legend(label, table, range),
  };
}
