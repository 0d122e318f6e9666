/** Paints in slices: never longer than a few milliseconds in one frame, so that the page answers its user meanwhile. */

const SLICE_MS = 6;

export class Painter {
  /** @type {Map<string, () => void>} */
  #jobs = new Map();
  #waits = false;

  /**
   * @param {import("../scope.js").Scope} scope
   * @param {() => void} onIdle Called when all is painted.
   */
  constructor(scope, onIdle) {
    this.scope = scope;
    this.onIdle = onIdle;
  }

  /** Paints before long; a job takes the place of a waiting one with its key. */
  add(key, job) {
    this.#jobs.set(key, job);
    this.#wait();
  }

  get idle() {
    return this.#jobs.size === 0;
  }

  #wait() {
    if (this.#waits) return;
    this.#waits = true;
    this.scope.frame(() => this.#slice());
  }

  #slice() {
    this.#waits = false;
    const end = performance.now() + SLICE_MS;
    for (const [key, job] of this.#jobs) {
      this.#jobs.delete(key);
      job();
      if (performance.now() > end) break;
    }
    if (this.#jobs.size) this.#wait();
    else this.onIdle();
  }
}
