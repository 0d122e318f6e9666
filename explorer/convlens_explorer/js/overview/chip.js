/** A small label beside what one points at. */

import { el, replace } from "../element.js";

const GAP = 14;

export class Chip {
  element = el("div.chip", { role: "tooltip", hidden: true });

  /**
   * @param {string[]} lines The first is what it is.
   * @param {number} x Of the window.
   * @param {number} y
   */
  show(lines, x, y) {
    replace(
      this.element,
      lines.map((line, i) => el(i ? "span" : "b", {}, line)),
    );
    this.element.hidden = false;
    const { offsetWidth: width, offsetHeight: height } = this.element;
    const left = x + GAP + width > innerWidth ? x - GAP - width : x + GAP;
    const top = y + GAP + height > innerHeight ? y - GAP - height : y + GAP;
    this.element.style.transform = `translate(${Math.max(0, left)}px, ${Math.max(0, top)}px)`;
  }

  hide() {
    this.element.hidden = true;
  }
}
