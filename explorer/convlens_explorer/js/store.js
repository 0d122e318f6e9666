/**
 * The page's one state. Who changes it, calls `set`; who shows a part of it, subscribes to its keys. Listeners are called
 * once after all changes of a task, with the state as it is then.
 *
 * @typedef {object} Place Where one is in the network.
 * @property {string} [view] Name of the open view (views/index.js); none is the overview.
 * @property {string} [layer]
 * @property {number} [channel]
 * @property {number} [row]
 * @property {number} [column]
 * @property {Record<string, string>} [options] What else the view needs to be found again, as text.
 *
 * @typedef {object} State
 * @property {object[]} models ModelVersion of ListModels, numbers as numbers.
 * @property {string} model Name; "" before one is chosen.
 * @property {number} version 0 asks for the default.
 * @property {import("./network.js").Network | null} network The chosen model's; null until it is loaded.
 * @property {import("./images.js").PageImage[]} images Samples and own images.
 * @property {string[]} chosen Ids of the images shown; the first is the current one.
 * @property {"unit" | "module" | "network"} scale What shares a range of colours.
 * @property {boolean} details Dimensions, legends and what layers save are shown.
 * @property {string | null} article Section of the open explanation; null while it is closed.
 * @property {Place} place
 * @property {string} language "en" or "ja".
 * @property {"light" | "dark"} theme
 * @property {{kind: string, key: string, values: object} | null} trouble What the banner says.
 * @property {number} attempt Raised when the server or the model is back: everything is asked for anew.
 */
export class Store {
  /** @type {State} */
  #state;
  #listeners = new Set();
  #changed = new Set();

  /** @param {State} state */
  constructor(state) {
    this.#state = state;
  }

  /**
   * @template {keyof State} K
   * @param {K} key
   * @returns {State[K]}
   */
  get(key) {
    return this.#state[key];
  }

  /** @param {Partial<State>} changes */
  set(changes) {
    const before = this.#changed.size;
    for (const [key, value] of Object.entries(changes)) {
      if (same(this.#state[key], value)) continue;
      this.#state = { ...this.#state, [key]: value };
      this.#changed.add(key);
    }
    if (!before && this.#changed.size) queueMicrotask(() => this.#notify());
  }

  /** Goes somewhere: what is not named is not kept. */
  go(place) {
    this.set({ place });
  }

  /**
   * Calls `listener` after changes of any of these keys.
   * @param {Array<keyof State>} keys
   * @param {(changed: Set<string>) => void} listener
   * @param {import("./scope.js").Scope} scope Ends the subscription.
   */
  subscribe(keys, listener, scope) {
    const entry = { keys, listener };
    this.#listeners.add(entry);
    scope.onClose(() => this.#listeners.delete(entry));
  }

  #notify() {
    const changed = this.#changed;
    this.#changed = new Set();
    for (const entry of [...this.#listeners]) {
      if (this.#listeners.has(entry) && entry.keys.some((key) => changed.has(key))) entry.listener(changed);
    }
  }
}

/** Whether two values say the same: plain data is compared by content, all else by identity. */
export function same(one, other) {
  if (Object.is(one, other)) return true;
  if (!plain(one) || !plain(other) || Array.isArray(one) !== Array.isArray(other)) return false;
  const keys = Object.keys(one);
  return keys.length === Object.keys(other).length && keys.every((key) => key in other && same(one[key], other[key]));
}

function plain(value) {
  return Array.isArray(value) || (typeof value === "object" && value !== null && value.constructor === Object);
}
