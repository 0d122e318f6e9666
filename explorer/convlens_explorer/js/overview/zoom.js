/** Zooming and panning: scrolling moves, Ctrl and the wheel or two fingers zoom, dragging empty space moves too. */

const LEAST = 0.12;
const MOST = 6;
// A click may tremble by so many pixels. A captured pointer clicks the sheet, not the map where it went down.
const LEAST_DRAG = 5;

export class Zoom {
  #zoom = 1;
  #fit = 1;
  /** Whether the zoom is the one that fits, also when the window changes. */
  #fits = true;
  /** Of two fingers: where their middle is and how far they are apart. */
  #pinch = null;
  #drag = null;

  /**
   * @param {HTMLElement} scroller What scrolls.
   * @param {HTMLElement} sizer Its only child: as large as the zoomed world.
   * @param {HTMLElement} world In it: what is zoomed.
   * @param {import("../scope.js").Scope} scope
   */
  constructor(scroller, sizer, world, scope) {
    this.scroller = scroller;
    this.sizer = sizer;
    this.world = world;
    this.width = 0;
    this.height = 0;
    scope.listen(scroller, "wheel", (event) => this.#wheel(event), { passive: false });
    // One finger scrolls, which the browser does; it is kept from zooming the page with two.
    for (const type of ["touchstart", "touchmove", "touchend", "touchcancel"]) {
      scope.listen(scroller, type, (event) => this.#touch(event), { passive: false });
    }
    for (const type of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) {
      scope.listen(scroller, type, (event) => event.pointerType !== "touch" && this.#mouse(event));
    }
  }

  get zoom() {
    return this.#zoom;
  }

  /**
   * Takes the world's size at zoom 1, and the zoom at which it fits.
   * @param {import("./layout.js").Layout} layout
   */
  resize({ width, height, fit }) {
    Object.assign(this, { width, height });
    this.#fit = fit;
    if (this.#fits) this.#zoom = fit;
    this.#apply();
  }

  /** Back to the zoom at which it fits. */
  fit() {
    this.#fits = true;
    this.#zoom = this.#fit;
    this.#apply();
    this.scroller.scrollTo(0, 0);
  }

  /** Zooms by a factor; the given point of the window stays where it is. */
  by(factor, x, y) {
    const frame = this.scroller.getBoundingClientRect();
    const left = (x ?? frame.x + frame.width / 2) - frame.x;
    const top = (y ?? frame.y + frame.height / 2) - frame.y;
    const at = [(this.scroller.scrollLeft + left) / this.#zoom, (this.scroller.scrollTop + top) / this.#zoom];
    this.#zoom = Math.min(MOST, Math.max(LEAST, this.#zoom * factor));
    this.#fits = false;
    this.#apply();
    this.scroller.scrollTo(at[0] * this.#zoom - left, at[1] * this.#zoom - top);
  }

  #apply() {
    this.sizer.style.width = `${this.width * this.#zoom}px`;
    this.sizer.style.height = `${this.height * this.#zoom}px`;
    this.world.style.transform = `scale(${this.#zoom})`;
    this.world.style.setProperty("--zoom", String(this.#zoom));
    this.world.style.width = `${this.width}px`;
    this.world.style.height = `${this.height}px`;
  }

  #wheel(event) {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    this.by(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0025)), event.clientX, event.clientY);
  }

  #touch(event) {
    const before = this.#pinch;
    this.#pinch = event.touches.length === 2 ? spread(event.touches) : null;
    if (!this.#pinch) return;
    event.preventDefault();
    if (!before) return;
    const { x, y, distance } = this.#pinch;
    this.by(distance / before.distance, x, y);
    this.scroller.scrollBy(before.x - x, before.y - y);
  }

  #mouse(event) {
    if (event.type === "pointerdown" && event.button === 0) {
      // Not on the scroll bars.
      const frame = this.scroller.getBoundingClientRect();
      if (event.clientX - frame.x > this.scroller.clientWidth || event.clientY - frame.y > this.scroller.clientHeight)
        return;
      this.#drag = { x: event.clientX, y: event.clientY, moves: false };
    } else if (event.type === "pointermove" && this.#drag) {
      this.#move(event);
    } else if (event.type !== "pointermove") {
      this.#drag = null;
    }
    this.scroller.classList.toggle("is-dragged", this.#drag?.moves ?? false);
  }

  #move(event) {
    const drag = this.#drag;
    const [across, down] = [drag.x - event.clientX, drag.y - event.clientY];
    if (!drag.moves && Math.hypot(across, down) < LEAST_DRAG) return;
    if (!drag.moves) this.scroller.setPointerCapture(event.pointerId);
    drag.moves = true;
    this.scroller.scrollBy(across, down);
    Object.assign(drag, { x: event.clientX, y: event.clientY });
  }
}

function spread([one, other]) {
  return {
    x: (one.clientX + other.clientX) / 2,
    y: (one.clientY + other.clientY) / 2,
    distance: Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1,
  };
}
