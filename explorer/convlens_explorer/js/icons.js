/** The page's signs, drawn: fonts do not have them all. */

import { svg } from "./element.js";

const PATHS = {
  play: "M5 3 L13 8 L5 13 Z",
  pause: "M4 3 H7 V13 H4 Z M9 3 H12 V13 H9 Z",
  back: "M12 3 L6 8 L12 13 Z M4 3 H5.6 V13 H4 Z",
  next: "M4 3 L10 8 L4 13 Z M10.4 3 H12 V13 H10.4 Z",
  skip: "M2 3 L8 8 L2 13 Z M8 3 L14 8 L8 13 Z",
  again: "M8 2.5 A5.5 5.5 0 1 0 13.5 8 H11.7 A3.7 3.7 0 1 1 8 4.3 V7 L12.6 3.5 L8 0 Z",
  moon: "M6.2 1.5 A6.6 6.6 0 1 0 14.5 9.8 A5.4 5.4 0 0 1 6.2 1.5 Z",
  sun: "M8 4.6 A3.4 3.4 0 1 0 8 11.4 A3.4 3.4 0 1 0 8 4.6 Z M7.3 0.5 H8.7 V3 H7.3 Z M7.3 13 H8.7 V15.5 H7.3 Z M0.5 7.3 V8.7 H3 V7.3 Z M13 7.3 V8.7 H15.5 V7.3 Z M2.2 3.2 L3.2 2.2 L5 4 L4 5 Z M11 4 L12.8 2.2 L13.8 3.2 L12 5 Z M2.2 12.8 L4 11 L5 12 L3.2 13.8 Z M11 12 L12 11 L13.8 12.8 L12.8 13.8 Z",
  fit: "M2 2 H6.5 V3.6 H3.6 V6.5 H2 Z M9.5 2 H14 V6.5 H12.4 V3.6 H9.5 Z M2 9.5 H3.6 V12.4 H6.5 V14 H2 Z M12.4 9.5 H14 V14 H9.5 V12.4 H12.4 Z",
};

/** @param {keyof typeof PATHS} name @returns {SVGElement} Without words: its button has them. */
export function icon(name) {
  return svg(
    "svg.sign",
    { viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true" },
    svg("path", { d: PATHS[name], fill: "currentColor" }),
  );
}
