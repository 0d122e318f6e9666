/** Paints in slices: never longer than a few milliseconds in one frame, so that the page answers its user meanwhile. */

const SLICE_MS = 6;
// Canvases of another size than before, in one frame. Without a GPU the browser's own work for each is up to 4 ms, when
// the frame ends. The longest task of a ResNet-18 that opens took 117 ms without this bound, and 64 with it
// (bench/explorer.py).
const MOST_SIZED = 16;

export class Painter {
  /** @type {Map<string, () => number>} */
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

  /** Paints before long; a job says how many canvases it gave another size, and takes the place of one with its key. */
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
    let sized = 0;
    for (const [key, job] of this.#jobs) {
      this.#jobs.delete(key);
      sized += job();
      if (sized >= MOST_SIZED || performance.now() > end) break;
    }
    if (this.#jobs.size) this.#wait();
    else this.onIdle();
  }
}
