/** What views ask the server for: exact maps, kernels and the arithmetic of units. */

import { ApiError, call, layers } from "../api.js";
import { el, replace } from "../element.js";
import { channelsOf, hasMaps, INPUT } from "../network.js";
import { Plane } from "../plane.js";
import { t } from "../text.js";
import { Unable } from "./index.js";

/** Asks for one network and one image; keeps what it was told, as long as its view is open. */
export class Asking {
  /** @type {Map<string, Promise<any>>} */
  #answers = new Map();

  /** @param {import("./index.js").Context} context */
  constructor({ network, scope, ranges, image }) {
    const chosen = image();
    if (!chosen) throw new Unable(t("view.noImage"));
    this.image = chosen;
    this.network = network;
    this.ranges = ranges;
    this.signal = scope.signal;
    this.model = { model: network.model, version: network.version };
  }

  /**
   * Exact maps.
   * @param {import("../network.js").Layer} layer "input" too. Of a layer without positions each unit is one number.
   * @param {number[]} channels
   * @returns {Promise<Plane[]>} In the order of `channels`.
   */
  planes(layer, channels) {
    return this.#once(`planes ${layer.name} ${channels}`, async () => {
      const planes = [];
      const all = channels.length === channelsOf(layer);
      const [height, width] = hasMaps(layer) ? layer.shape.slice(1) : [1, 1];
      const body = {
        ...this.model,
        images: await this.image.asRequest(),
        layers: [layer.name],
        channels: all ? [] : channels,
        valueType: "VALUE_TYPE_FLOAT32",
      };
      const take = (_, data) => {
        const values = new Float32Array(data.buffer);
        for (let i = 0; i < channels.length; i++) {
          const at = (all ? channels[i] : i) * height * width;
          planes.push(Plane.of(values.subarray(at, at + height * width), height, width));
        }
      };
      await layers("GetFeatureMaps", body, take, this.signal);
      if (hasMaps(layer)) for (const plane of planes) this.ranges.note(this.image, layer, plane);
      return planes;
    });
  }

  /** All values of a layer, channel by channel. @returns {Promise<Float32Array>} */
  values(layer) {
    return this.#once(`values ${layer.name}`, async () => {
      /** @type {Float32Array} */
      let values = new Float32Array();
      const body = {
        ...this.model,
        images: await this.image.asRequest(),
        layers: [layer.name],
        valueType: "VALUE_TYPE_FLOAT32",
      };
      const take = (_, data) => {
        values = new Float32Array(data.buffer);
      };
      await layers("GetFeatureMaps", body, take, this.signal);
      return values;
    });
  }

  /**
   * The kernels and the bias of one output channel.
   * @returns {Promise<{weights: Float32Array, bias: number, shape: number[]}>} `shape` is that of all the layer's weights.
   */
  kernels(layer, channel) {
    return this.#once(`kernels ${layer.name} ${channel}`, async () => {
      let answer = null;
      const body = { ...this.model, layer: layer.name, channels: [channel], valueType: "VALUE_TYPE_FLOAT32" };
      const take = (head, data) => {
        answer = { weights: new Float32Array(data.buffer), bias: Number(head.bias?.[0] ?? 0), shape: head.shape };
      };
      await layers("GetKernels", body, take, this.signal);
      return answer;
    });
  }

  /**
   * One unit explained.
   * @param {{layer: string, channel: number, row?: number, column?: number}} unit
   * @returns {Promise<Explanation>}
   */
  explain(unit) {
    const name = `unit ${unit.layer} ${unit.channel} ${unit.row} ${unit.column}`;
    return this.#once(name, async () => {
      const body = { ...this.model, images: await this.image.asRequest(), unit };
      return explanation(await call("ExplainUnit", body, { signal: this.signal }));
    });
  }

  #once(name, ask) {
    const answer = this.#answers.get(name) ?? ask();
    this.#answers.delete(name);
    this.#answers.set(name, answer);
    // A walk over a large map asks for thousands of units; what was asked long ago is asked again.
    if (this.#answers.size > 256) this.#answers.delete(this.#answers.keys().next().value);
    answer.catch(() => this.#answers.delete(name));
    return answer;
  }
}

/**
 * @typedef {object} Patch
 * @property {string} layer "" for a constant.
 * @property {number[]} shape Channels, rows, columns.
 * @property {number} firstChannel
 * @property {number} firstRow
 * @property {number} firstColumn
 * @property {number[]} step
 * @property {number[]} values
 *
 * @typedef {object} Explanation ExplainUnitResponse, with every number a number.
 * @property {string} kind Of the layer.
 * @property {"weightedSum" | "pooling" | "function" | "elementwise" | "selection" | "softmax"} form
 * @property {any} arithmetic The message of that form.
 * @property {Patch[]} patches All that go in.
 * @property {number} result
 * @property {number} activation
 * @property {{top: number, left: number, height: number, width: number}} field
 */

/** @type {Array<Explanation["form"]>} */
const FORMS = ["weightedSum", "pooling", "function", "elementwise", "selection", "softmax"];

/** @param {any} response @returns {Explanation} */
export function explanation(response) {
  const form = FORMS.find((name) => response[name]);
  const arithmetic = response[form];
  const patches = (arithmetic.patches ?? [arithmetic.patch]).map(patchOf);
  const numbers = (list) => (list ?? []).map(Number);
  const { top = 0, left = 0, height = 0, width = 0 } = response.receptiveField ?? {};
  return {
    kind: response.kind,
    form,
    patches,
    result: Number(response.result ?? 0),
    activation: Number(response.activation ?? 0),
    field: { top, left, height, width },
    arithmetic: {
      ...arithmetic,
      sum: Number(arithmetic.sum ?? 0),
      bias: Number(arithmetic.bias ?? 0),
      weights: numbers(arithmetic.weights),
      products: numbers(arithmetic.products),
      channelSums: numbers(arithmetic.channelSums),
      largest: numbers(arithmetic.largest),
      exponentials: numbers(arithmetic.exponentials),
      divisor: arithmetic.divisor ?? 0,
      index: arithmetic.index ?? 0,
      parameters: Object.fromEntries(
        Object.entries(arithmetic.parameters ?? {}).map(([name, value]) => [name, Number(value)]),
      ),
    },
  };
}

function patchOf({ layer = "", shape = [], firstChannel = 0, firstRow = 0, firstColumn = 0, step = [], values = [] }) {
  const [channels = 1, rows = 1, columns = 1] = shape;
  return {
    layer,
    shape: [channels, rows, columns],
    firstChannel,
    firstRow,
    firstColumn,
    step: step.length ? step : [1, 1],
    values: values.map(Number),
  };
}

/**
 * Answers the newest question only: while one is on its way, all that come are forgotten but the last.
 * @template Q
 * @param {(question: Q) => Promise<void>} answer
 * @param {(error: unknown) => void} fail
 * @returns {(question: Q) => Promise<void>} Resolves when nothing is on its way any more.
 */
export function newest(answer, fail) {
  let running = null;
  let waiting = null;
  const run = async () => {
    while (waiting) {
      const [question] = waiting;
      waiting = null;
      try {
        await answer(question);
      } catch (error) {
        fail(error);
      }
    }
    running = null;
  };
  return (question) => {
    waiting = [question];
    running ??= run();
    return running;
  };
}

/**
 * What a view does with a question's failure: what concerns the whole page is the page's matter, all else is said in the
 * place of the answer.
 * @param {import("./index.js").Context} context
 * @param {HTMLElement} place
 * @returns {(error: any) => void}
 */
export function saying({ scope, report }, place) {
  return (error) => {
    if (scope.closed || error.name === "AbortError") return;
    if (!(error instanceof ApiError) || error.away || error.gone) report(error);
    replace(place, el("p.failure", { role: "alert" }, error.message));
  };
}

/**
 * The layer and the channel of a view's place, as far as the network has them. Throws Unable.
 * @param {import("./index.js").Context} context
 * @param {string[]} [kinds] Of layers that the view can show; any but the input if not given.
 */
export function unitOf({ store, network }, kinds) {
  const { layer: name, channel = 0, options = {} } = store.get("place");
  const layer = network.layer(name ?? "");
  if (!layer || layer.kind === INPUT || (kinds && !kinds.includes(layer.kind))) throw new Unable(t("view.noLayer"));
  return { layer, name: layer.name, channel: Math.min(channel, channelsOf(layer) - 1), options };
}
