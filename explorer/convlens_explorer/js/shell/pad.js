/** The drawing pad, for models that take grey images: they answer while one draws. */

import { el } from "../element.js";
import { Scope } from "../scope.js";
import { t } from "../text.js";

const SIDE = 252;
const PEN = 20;
// A step of the keyboard's pen.
const STEP = 6;
// As MNIST's digits are: 20 of 28 pixels large, their centre of mass in the middle.
const FILLED = 20 / 28;
const EVERY_MS = 100;

/** @type {Scope | null} The open pad's. */
let open = null;

/**
 * Opens the pad, or brings it to the front.
 * @param {import("./own.js").Own} own
 * @param {import("../network.js").Network} network
 */
export function openPad(own, network) {
  open?.close();
  const scope = (open = new Scope(own.scope));
  own.store.subscribe(["network", "language", "theme"], () => scope.close(), scope);
  const pad = new Pad(own, network, scope);
  document.body.append(pad.element);
  pad.canvas.focus();
  scope.onClose(() => pad.element.remove());
}

class Pad {
  #pen = null;
  #keyPen = { x: SIDE / 2, y: SIDE / 4 };
  #waits = false;
  #drawings = 0;

  constructor(own, network, scope) {
    this.own = own;
    this.network = network;
    this.scope = scope;
    this.canvas = /** @type {HTMLCanvasElement} */ (
      el("canvas", { width: SIDE, height: SIDE, tabindex: 0, role: "img", "aria-label": t("images.padLabel") })
    );
    this.context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d", { willReadFrequently: true }));
    this.element = el(
      "section.pad",
      { "aria-label": t("images.padTitle") },
      el(
        "header",
        {},
        el("h2", {}, t("images.padTitle")),
        el("button.icon", { type: "button", "aria-label": t("shell.close"), on: { click: () => scope.close() } }, "×"),
      ),
      this.canvas,
      el(
        "footer",
        {},
        el("span.quiet", {}, t("images.padNote")),
        el("button", { type: "button", id: "pad-clear", on: { click: () => this.#clear() } }, t("images.clear")),
      ),
    );
    this.#clear();
    scope.listen(this.canvas, "pointerdown", (event) => this.#begin(event));
    scope.listen(this.canvas, "pointermove", (event) => this.#go(event));
    for (const type of ["pointerup", "pointercancel"]) scope.listen(this.canvas, type, () => (this.#pen = null));
    scope.listen(this.element, "keydown", (event) => this.#key(event));
  }

  #clear() {
    this.context.fillStyle = "#000";
    this.context.fillRect(0, 0, SIDE, SIDE);
    Object.assign(this.context, { strokeStyle: "#fff", lineWidth: PEN, lineCap: "round", lineJoin: "round" });
  }

  #begin(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.#pen = this.#at(event);
    this.#line(this.#pen, this.#pen);
  }

  #go(event) {
    if (!this.#pen) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) {
      const next = this.#at(each);
      this.#line(this.#pen, next);
      this.#pen = next;
    }
  }

  /** Arrows draw, with Shift they only move the pen. */
  #key(event) {
    if (event.key === "Escape") return void (event.stopPropagation(), this.scope.close());
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const step = steps[event.key];
    if (!step || event.target !== this.canvas) return undefined;
    event.preventDefault();
    const next = { x: clamp(this.#keyPen.x + STEP * step[0]), y: clamp(this.#keyPen.y + STEP * step[1]) };
    if (!event.shiftKey) this.#line(this.#keyPen, next);
    this.#keyPen = next;
    return undefined;
  }

  #at(event) {
    const frame = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - frame.x) / frame.width) * SIDE,
      y: ((event.clientY - frame.y) / frame.height) * SIDE,
    };
  }

  #line(from, to) {
    this.context.beginPath();
    this.context.moveTo(from.x, from.y);
    this.context.lineTo(to.x, to.y);
    this.context.stroke();
    if (this.#waits) return;
    this.#waits = true;
    this.scope.after(EVERY_MS, () => ((this.#waits = false), this.#ask()));
  }

  async #ask() {
    const { width, height } = this.network;
    const drawing = centred(this.canvas, this.context, width, height);
    if (!drawing) return;
    const file = await drawing.convertToBlob({ type: "image/png" });
    if (this.scope.closed) return;
    this.own.draw(this.own.make(file, t("images.drawing"), "drawing", `drawing-${Date.now()}-${this.#drawings++}`));
  }
}

/** The drawing in a model's size, as large and as central as the digits that it learned from; null while it is empty. */
function centred(canvas, context, width, height) {
  const box = inked(context.getImageData(0, 0, SIDE, SIDE));
  if (!box) return null;
  const scale = (Math.min(width, height) * FILLED) / Math.max(box.width, box.height);
  const size = [box.width * scale, box.height * scale];
  const draw = (left, top) => {
    const target = new OffscreenCanvas(width, height);
    const pen = /** @type {OffscreenCanvasRenderingContext2D} */ (target.getContext("2d"));
    pen.fillRect(0, 0, width, height);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(canvas, box.left, box.top, box.width, box.height, left, top, size[0], size[1]);
    return { target, pixels: pen.getImageData(0, 0, width, height) };
  };
  const [left, top] = [(width - size[0]) / 2, (height - size[1]) / 2];
  const mass = centre(draw(left, top).pixels);
  return draw(left + (width - 1) / 2 - mass.x, top + (height - 1) / 2 - mass.y).target;
}

function inked({ data, width, height }) {
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (data[4 * (y * width + x)] < 64) continue;
      left = Math.min(left, x);
      right = Math.max(right, x);
      top = Math.min(top, y);
      bottom = y;
    }
  }
  return right < 0 ? null : { left, top, width: right - left + 1, height: bottom - top + 1 };
}

function centre({ data, width, height }) {
  let [mass, x, y] = [0, 0, 0];
  for (let i = 0; i < width * height; i++) {
    mass += data[4 * i];
    x += data[4 * i] * (i % width);
    y += data[4 * i] * Math.floor(i / width);
  }
  return { x: x / mass, y: y / mass };
}

function clamp(value) {
  return Math.min(SIDE, Math.max(0, value));
}
