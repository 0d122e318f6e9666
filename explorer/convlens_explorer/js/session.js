/** What the page knows of the server: its models, the chosen network, its maps. Keeps the store's part of it true. */

import { call } from "./api.js";
import { PageImage } from "./images.js";
import { Maps } from "./maps.js";
import { Network } from "./network.js";
import { Ranges } from "./ranges.js";
import { fromBase64 } from "./wire.js";

/** Ids of what people bring: files, the camera's pictures and drawings. */
const OWN = /^(own|drawing)-/;
const TYPES = { 0x89: "image/png", 0xff: "image/jpeg", 0x52: "image/webp" };

export class Session {
  /** @type {import("./scope.js").Scope | null} */
  #loading = null;

  /**
   * @param {import("./store.js").Store} store
   * @param {import("./scope.js").Scope} scope
   * @param {(error: unknown) => void} report What becomes of failures.
   */
  constructor(store, scope, report) {
    this.store = store;
    this.scope = scope;
    this.report = report;
    /** @type {Maps | null} */
    this.maps = null;
    /** @type {Ranges | null} */
    this.ranges = null;
    // After a restart the same version may hold other weights.
    store.subscribe(["attempt"], () => this.maps?.clear(), scope);
    store.subscribe(["model", "version", "attempt"], () => this.#load(), scope);
  }

  /** Begins with the model that the link names, or with one that answers. Throws ApiError. */
  async begin() {
    const named = this.store.get("model") !== "";
    await this.refresh();
    if (named) await this.#load();
  }

  /** Asks for the models, and chooses one if none is. Throws ApiError. */
  async refresh() {
    const answer = await call("ListModels", {}, { signal: this.scope.signal });
    const models = (answer.models ?? []).map((entry) => ({
      error: "",
      isDefault: false,
      classes: 0,
      ...entry,
      version: Number(entry.version ?? 0),
      parameters: Number(entry.parameters ?? 0),
    }));
    this.store.set({ models });
    if (!this.store.get("model")) {
      const able = models.find((entry) => ready(entry)) ?? models[0];
      if (able) this.store.set({ model: able.model });
    }
  }

  async #load() {
    const model = this.store.get("model");
    const version = this.store.get("version");
    if (!model) return;
    this.#loading?.close();
    const loading = (this.#loading = this.scope.child());
    try {
      const [network, samples] = await Promise.all([
        Network.load(model, version, loading.signal),
        call("GetSamples", { model, version }, { signal: loading.signal }),
      ]);
      if (loading.closed) return;
      if (network.source === this.store.get("network")?.source) return;
      const ranges = new Ranges(network, this.store);
      this.maps = new Maps(network, (image, layer, plane) => ranges.note(image, layer, plane));
      this.ranges = ranges;
      const images = [
        ...(samples.samples ?? []).map(sample),
        ...this.store.get("images").filter(({ origin }) => origin !== "sample"),
      ];
      for (const old of this.store.get("images")) if (!images.includes(old)) old.forget();
      const wanted = this.store.get("chosen");
      const chosen = choice(wanted, images);
      const elsewhere = wanted.some((id) => OWN.test(id) && !chosen.includes(id));
      this.store.set({
        network,
        images,
        chosen,
        // One's own images stay in one's browser: a link of somebody else's names them, but cannot bring them.
        ...(elsewhere && { trouble: { kind: "image", key: "images.elsewhere", values: {} } }),
        place: this.#place(network),
      });
    } catch (error) {
      if (!loading.closed) this.report(error);
    }
  }

  /** Stays where one is if the network has the layer. */
  #place(network) {
    const place = this.store.get("place");
    return place.layer && !network.layer(place.layer) ? {} : place;
  }
}

/** Whether a version answers, now or as soon as it is asked. */
export function ready({ state }) {
  return state === "MODEL_STATE_READY" || state === "MODEL_STATE_UNLOADED";
}

function choice(chosen, images) {
  const still = chosen.filter((id) => images.some((image) => image.id === id) || /^https?:/.test(id));
  return still.length || !images.length ? still : [images[0].id];
}

function sample({ name, file }) {
  const bytes = /** @type {Uint8Array<ArrayBuffer>} */ (fromBase64(file));
  const title = name.replace(/^\d+_(?=.)/, "").replaceAll("_", " ");
  return new PageImage(name, title, "sample", new Blob([bytes], { type: TYPES[bytes[0]] }));
}
