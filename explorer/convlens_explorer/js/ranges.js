/** Which values the first and the last colour of a layer's maps stand for. */

import { INPUT } from "./network.js";
import { symmetric } from "./paint.js";

/**
 * Knows the extent of every map that has come, and makes ranges of them: for one unit (a convolution or dense layer and
 * what follows it up to the next), for a module (what lies between two poolings, or in a block), or for the whole
 * network. A range holds all images that are shown, so that they can be compared.
 */
export class Ranges {
  /** Layer → image → extent. @type {Map<string, Map<string, import("./paint.js").Range>>} */
  #extents = new Map();
  /** Layer → its group, by scale. @type {Record<string, Map<string, string>>} */
  #groups = { unit: new Map(), module: new Map(), network: new Map() };

  /**
   * @param {import("./network.js").Network} network
   * @param {import("./store.js").Store} store Its `scale` and `chosen` are looked at.
   */
  constructor(network, store) {
    this.network = network;
    this.store = store;
    this.#group();
  }

  /** Learns of a plane of a layer. */
  note(image, layer, plane) {
    const images = this.#extents.get(layer.name) ?? new Map();
    images.set(image.id, united(images.get(image.id), plane));
    this.#extents.set(layer.name, images);
  }

  /** Name of the table of a layer's colours. @returns {keyof import("./colours.js").Tables} */
  table(layer) {
    if (layer.kind === INPUT) return "input";
    return this.#ownColours(layer) ? "logit" : "activation";
  }

  /**
   * The range of a layer's values. Activations' is symmetric, scores' is 0 … 1, input's and logits' is their extent.
   * @param {import("./network.js").Layer} layer
   * @returns {import("./paint.js").Range}
   */
  of(layer) {
    if (layer.kind === "softmax") return { low: 0, high: 1 };
    if (layer.kind === INPUT || this.#ownColours(layer)) return this.#extent(layer.name) ?? { low: 0, high: 1 };
    const extent = this.members(layer)
      .map((name) => this.#extent(name))
      .reduce(united, null);
    return extent ? symmetric(extent.low, extent.high) : { low: -1, high: 1 };
  }

  /** Names of the layers that share a layer's range, itself among them. */
  members(layer) {
    const groups = this.#groups[this.store.get("scale")];
    const group = groups.get(layer.name);
    return group === undefined
      ? [layer.name]
      : [...groups].filter(([, other]) => other === group).map(([name]) => name);
  }

  #ownColours(layer) {
    return layer === this.network.logits || layer === this.network.output;
  }

  #extent(name) {
    const images = this.#extents.get(name);
    return this.store
      .get("chosen")
      .map((image) => images?.get(image))
      .reduce(united, null);
  }

  #group() {
    const { unit, module, network } = this.#groups;
    const blocks = new Map();
    for (const block of this.network.blocks) {
      for (const name of block.layers) if (!blocks.has(name)) blocks.set(name, block.name);
    }
    let count = 0;
    for (const layer of this.network.layers) {
      if (this.#ownColours(layer)) continue;
      const source = this.network.layer(layer.inputs[0]);
      const begins =
        ["conv", "dense"].includes(layer.kind) || layer.inputs.length !== 1 || !unit.has(source?.name ?? "");
      if (/pool/.test(source?.kind ?? "")) count++;
      unit.set(layer.name, begins ? layer.name : /** @type {string} */ (unit.get(layer.inputs[0])));
      module.set(layer.name, blocks.get(layer.name) ?? String(count));
      network.set(layer.name, "");
    }
  }
}

function united(one, other) {
  if (!one || !other) return one || (other ? { low: other.low, high: other.high } : null);
  return { low: Math.min(one.low, other.low), high: Math.max(one.high, other.high) };
}
