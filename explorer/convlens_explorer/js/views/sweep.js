/** A kernel's walk over a map, in coarse steps, that uncovers what it has computed. */

import { el, replace } from "../element.js";
import { icon } from "../icons.js";
import { t } from "../text.js";

/** Stops along each axis, at most: enough to see the walk, few enough to see its end. */
const STOPS = 6;
const STEP_MS = 110;

export class Sweep {
  #cancel = null;
  #at = 0;

  /**
   * @param {object} options
   * @param {import("../scope.js").Scope} options.scope
   * @param {number[]} options.size Rows and columns of the output.
   * @param {(unit: number[]) => void} options.onStep The kernel stands at this unit.
   * @param {(to: {row: number, column: number, rows: number, columns: number} | null) => void} options.onReveal What is
   *   computed so far, as of MapBox.uncover; null at the end.
   * @param {(running: boolean) => void} options.onRun It begins or ends.
   * @param {(unit: number[]) => void} options.onEnd The kernel has come to rest at this unit.
   */
  constructor({ scope, size, onStep, onReveal, onRun, onEnd }) {
    this.scope = scope;
    this.size = size;
    this.stops = size.map((cells) => Math.min(cells, STOPS));
    this.onStep = onStep;
    this.onReveal = onReveal;
    this.onRun = onRun;
    this.onEnd = onEnd;
    this.rest = [0, 0];
    this.element = el("button.sweep", {
      type: "button",
      on: { click: () => (this.running ? this.#skip() : this.#start()) },
    });
    this.#say();
  }

  get running() {
    return this.#cancel !== null;
  }

  /** Walks by itself, unless the reader asked for less motion; ends at the unit `rest`. */
  begin(rest) {
    this.rest = rest;
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) this.#start();
  }

  /** Ends the walk where it is, with everything uncovered; does nothing if none is on. */
  finish() {
    if (!this.running) return;
    this.#cancel();
    this.#cancel = null;
    this.onReveal(null);
    this.#say();
  }

  #skip() {
    this.finish();
    this.onStep(this.rest);
    this.onEnd(this.rest);
  }

  #start() {
    this.#at = 0;
    this.#cancel = this.scope.every(STEP_MS, () => this.#step());
    this.#say();
    this.#step();
  }

  #step() {
    const [rows, columns] = this.stops;
    if (this.#at >= rows * columns) {
      this.#skip();
      return;
    }
    const [row, column] = [Math.floor(this.#at / columns), this.#at % columns];
    const unit = [row, column].map((stop, axis) => {
      const last = this.size[axis] - 1;
      return this.stops[axis] === 1 ? 0 : Math.round((stop / (this.stops[axis] - 1)) * last);
    });
    this.onStep(unit);
    this.#at++;
    this.onReveal({ row: Math.floor(this.#at / columns), column: this.#at % columns, rows, columns });
  }

  #say() {
    this.onRun(this.running);
    replace(this.element, icon(this.running ? "skip" : "again"));
    this.element.setAttribute("aria-label", t(this.running ? "conv.fastForward" : "conv.redo"));
    this.element.title = t(this.running ? "conv.fastForward" : "conv.redo");
  }
}
