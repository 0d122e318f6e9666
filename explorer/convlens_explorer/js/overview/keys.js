/** The overview by keyboard: one stop for Tab, arrows within. */

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Keys {
  /** @type {HTMLElement | null} What Tab comes to. */
  #stop = null;

  /** @param {import("./overview.js").Overview} overview */
  constructor(overview) {
    this.overview = overview;
    const { scope } = overview.context;
    scope.listen(overview.world, "keydown", (event) => this.#press(event));
    scope.listen(
      overview.world,
      "focusin",
      (event) => event.target.closest(".map") && this.#rest(event.target.closest(".map")),
    );
  }

  /** Lets Tab come to the first map. */
  rest() {
    const [first] = this.overview.views.values();
    if (first?.rows.length) this.#rest(first.rows[0].button);
  }

  /** Brings the focus to a unit of a layer. */
  focus(layer, channel) {
    for (const view of this.overview.views.values()) {
      if (view.node.layer.name !== layer) continue;
      const row = view.rows[Math.max(0, view.rowOf(channel))];
      row?.button.focus({ preventScroll: false });
    }
  }

  #rest(button) {
    if (this.#stop) this.#stop.tabIndex = -1;
    this.#stop = button;
    button.tabIndex = 0;
  }

  #press(event) {
    const button = event.target.closest(".map");
    if (!button || event.ctrlKey || event.metaKey || event.altKey) return;
    const view = this.overview.views.get(button.closest(".node").dataset.node);
    const row = view.rows.findIndex((entry) => entry.button === button);
    let next = null;
    if (event.key in STEPS) next = this.#step(view, row, STEPS[event.key]);
    else if (event.key === "Home") next = view.rows[0].button;
    else if (event.key === "End") next = view.rows[view.rows.length - 1].button;
    else if (event.key === "PageDown" || event.key === "PageUp")
      next = this.#turn(view, row, event.key === "PageDown" ? 1 : -1);
    else return;
    event.preventDefault();
    next?.focus();
    next?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  #step(view, row, [across, down]) {
    if (down)
      return (
        view.rows[row + down]?.button ??
        (view.pages > 1 ? this.#turn(view, down > 0 ? 0 : view.options.rows - 1, down) : null)
      );
    const views = [...this.overview.views.values()];
    const { column, lane } = view.node;
    const beside = views.filter(({ node }) => node.column === column + across);
    const target = beside.find(({ node }) => node.lane === lane) ?? beside[0] ?? this.#nearest(views, column, across);
    return target?.rows[Math.min(row, target.rows.length - 1)]?.button ?? null;
  }

  /** A column may be empty on no lane, so the next one with anything. */
  #nearest(views, column, across) {
    const beyond = views.filter(({ node }) => (node.column - column) * across > 0);
    return beyond.sort((a, b) => Math.abs(a.node.column - column) - Math.abs(b.node.column - column))[0];
  }

  #turn(view, row, by) {
    if (view.page + by < 0 || view.page + by >= view.pages) return null;
    view.turn(by);
    return view.rows[Math.min(row, view.rows.length - 1)].button;
  }
}
