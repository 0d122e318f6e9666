/** Feature maps of the network on the page: asked for together, a channel only once. */

import { layers } from "./api.js";
import { channelsOf } from "./network.js";
import { Plane } from "./plane.js";

// Maps as bytes: some hundred layers of a large network.
const MOST_BYTES = 96 * 2 ** 20;

/**
 * @typedef {import("./network.js").Layer} Layer
 * @typedef {import("./images.js").PageImage} PageImage
 *
 * @typedef {object} Wish
 * @property {PageImage} image
 * @property {Layer} layer
 * @property {number[] | null} channels null: all.
 * @property {boolean} exact Whether as float32, not as bytes.
 * @property {AbortSignal} signal
 * @property {(planes: Plane[]) => void} done
 * @property {(error: unknown) => void} fail
 */

export class Maps {
  /** Most recently used last. @type {Map<string, Plane>} */
  #planes = new Map();
  #bytes = 0;
  /** @type {Wish[]} */
  #wishes = [];

  /**
   * @param {import("./network.js").Network} network
   * @param {(image: PageImage, layer: Layer, plane: Plane) => void} onPlane Told of each that comes.
   */
  constructor(network, onPlane) {
    this.network = network;
    this.onPlane = onPlane;
  }

  /**
   * Channels of a layer for an image. Wishes of the same task and signal travel in one request.
   * @param {PageImage} image
   * @param {Layer} layer One with maps: channels, rows, columns.
   * @param {number[]} channels
   * @param {AbortSignal} signal
   * @returns {Promise<Plane[]>} In the order of `channels`.
   */
  async planes(image, layer, channels, signal) {
    if (channels.every((channel) => this.#planes.has(key(image, layer, channel)))) {
      return channels.map((channel) => this.#use(key(image, layer, channel)));
    }
    const all = channels.length === channelsOf(layer);
    const planes = await this.#wish({ image, layer, channels: all ? null : channels, exact: false, signal });
    return channels.map((_, i) => planes[all ? channels[i] : i]);
  }

  /**
   * All units of a layer for an image, exactly; for a layer with maps channel by channel.
   * @returns {Promise<Float32Array>}
   */
  async units(image, layer, signal) {
    return (await this.unitPlane(image, layer, signal)).values;
  }

  /** The same as one column, to paint. @returns {Promise<Plane>} */
  async unitPlane(image, layer, signal) {
    const name = key(image, layer, "units");
    if (this.#planes.has(name)) return this.#use(name);
    const [plane] = await this.#wish({ image, layer, channels: null, exact: true, signal });
    return plane;
  }

  /** Forgets all maps: the model may be another now. */
  clear() {
    this.#planes.clear();
    this.#bytes = 0;
  }

  /** @returns {Promise<Plane[]>} In the order of the wish's channels; of an exact one a single plane. */
  #wish(wish) {
    if (!this.#wishes.length) queueMicrotask(() => this.#send());
    return new Promise((done, fail) => this.#wishes.push({ ...wish, done, fail }));
  }

  #send() {
    /** @type {Map<string, Wish[]>} */
    const requests = new Map();
    const signals = [];
    for (const wish of this.#wishes) {
      if (!signals.includes(wish.signal)) signals.push(wish.signal);
      const same = [
        signals.indexOf(wish.signal),
        wish.image.id,
        wish.exact ? "exact" : "",
        wish.channels ?? "all",
      ].join(" ");
      requests.set(same, [...(requests.get(same) ?? []), wish]);
    }
    this.#wishes = [];
    for (const wishes of requests.values()) this.#ask(wishes);
  }

  async #ask(wishes) {
    const { image, channels, exact, signal } = wishes[0];
    const waiting = new Map();
    for (const wish of wishes) waiting.set(wish.layer.name, [...(waiting.get(wish.layer.name) ?? []), wish]);
    const { model, version } = this.network;
    const take = (head, data) => {
      const wished = waiting.get(head.layer) ?? [];
      waiting.delete(head.layer);
      if (!wished.length) return;
      const { layer } = wished[0];
      const planes = exact ? [this.#takeUnits(image, layer, data)] : this.#takeLayer(image, layer, head, data);
      for (const { done } of wished) done(planes);
    };
    try {
      await layers(
        "GetFeatureMaps",
        {
          model,
          version,
          images: await image.asRequest(),
          layers: [...waiting.keys()],
          channels: channels ?? [],
          valueType: exact ? "VALUE_TYPE_FLOAT32" : "VALUE_TYPE_UINT8",
        },
        take,
        signal,
      );
      if (waiting.size) throw new Error(`the server did not answer ${[...waiting.keys()]}`);
    } catch (error) {
      for (const wish of [...waiting.values()].flat()) wish.fail(error);
    }
  }

  #takeUnits(image, layer, data) {
    const plane = Plane.of(new Float32Array(data.buffer), data.length / 4, 1);
    this.#keep(key(image, layer, "units"), plane);
    this.onPlane(image, layer, plane);
    return plane;
  }

  #takeLayer(image, layer, head, data) {
    const [, count, height, width] = head.shape;
    const size = height * width;
    return Array.from({ length: count }, (_, i) => {
      const channel = head.channels?.length ? head.channels[i] : i;
      const plane = new Plane(height, width, data.subarray(i * size, (i + 1) * size), head.scale[i], head.offset[i]);
      this.#keep(key(image, layer, channel), plane);
      this.onPlane(image, layer, plane);
      return plane;
    });
  }

  #keep(name, plane) {
    // It may be there: a wish for some channels that are known and some that are not asks for all of them.
    this.#drop(name);
    this.#planes.set(name, plane);
    this.#bytes += plane.bytes.length;
    for (const oldest of this.#planes.keys()) {
      if (this.#bytes <= MOST_BYTES || oldest === name) break;
      this.#drop(oldest);
    }
  }

  #drop(name) {
    this.#bytes -= this.#planes.get(name)?.bytes.length ?? 0;
    this.#planes.delete(name);
  }

  #use(name) {
    const plane = /** @type {Plane} */ (this.#planes.get(name));
    this.#planes.delete(name);
    this.#planes.set(name, plane);
    return plane;
  }
}

function key(image, layer, channel) {
  return `${image.id} ${layer.name} ${channel}`;
}
