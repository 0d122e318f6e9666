/** The buttons that play, pause and step an animation. */

import { el, replace } from "./element.js";
import { icon } from "./icons.js";
import { t } from "./text.js";

/** Plays by calling `step` again and again, until it is paused or the scope closes; not while the page is hidden. */
export class Playback {
  #cancel = null;

  /**
   * @param {object} options
   * @param {import("./scope.js").Scope} options.scope
   * @param {number} options.interval Milliseconds between two steps.
   * @param {(by: number) => void} options.step Goes a step on, or with −1 back.
   */
  constructor({ scope, interval, step }) {
    this.scope = scope;
    this.interval = interval;
    this.step = step;
    this.toggle = el("button.play", {
      type: "button",
      on: { click: () => (this.playing ? this.pause() : this.play()) },
    });
    const stepBy = (by) => () => {
      this.pause();
      step(by);
    };
    this.back = el(
      "button",
      { type: "button", "aria-label": t("view.stepBack"), on: { click: stepBy(-1) } },
      icon("back"),
    );
    this.next = el(
      "button",
      { type: "button", "aria-label": t("view.stepOn"), on: { click: stepBy(1) } },
      icon("next"),
    );
    this.element = el(
      "div.playback",
      { role: "group", "aria-label": t("view.playback") },
      this.back,
      this.toggle,
      this.next,
    );
    this.#say();
  }

  get playing() {
    return this.#cancel !== null;
  }

  /** Begins by itself, unless the reader asked for less motion. */
  begin() {
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) this.play();
  }

  play() {
    if (this.playing || this.toggle.disabled) return;
    this.#cancel = this.scope.every(this.interval, () => {
      if (!document.hidden) this.step(1);
    });
    this.#say();
  }

  pause() {
    this.#cancel?.();
    this.#cancel = null;
    this.#say();
  }

  /** Takes all buttons out of use, or gives them back. */
  set disabled(value) {
    if (value) this.pause();
    for (const button of [this.toggle, this.back, this.next]) button.disabled = value;
  }

  #say() {
    replace(this.toggle, icon(this.playing ? "pause" : "play"));
    this.toggle.setAttribute("aria-label", t(this.playing ? "view.pause" : "view.play"));
    this.toggle.setAttribute("aria-pressed", String(this.playing));
  }
}
