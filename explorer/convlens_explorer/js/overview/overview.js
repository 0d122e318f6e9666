/** The overview: the whole network on one large sheet. */

import { call } from "../api.js";
import { sectionOf } from "../article/sections.js";
import { el, replace } from "../element.js";
import { Classes } from "./classes.js";
import { Chip } from "./chip.js";
import { Edges } from "./edges.js";
import { frames } from "./frames.js";
import { Keys } from "./keys.js";
import { layOut } from "./layout.js";
import { legends } from "./legends.js";
import { NodeView } from "./node.js";
import { foldedAtFirst, nodesOf } from "./nodes.js";
import { Painter } from "./painter.js";
import { Pointing } from "./pointing.js";
import { Zoom } from "./zoom.js";

const ROWS_OF_CHAIN = 10;
const ROWS_OF_OTHERS = 6;
// How long colours wait for the rest of what was asked for, so that they need not change under one's eyes.
const PATIENCE_MS = 250;

export class Overview {
  /** @type {Map<string, NodeView>} By node id. */
  views = new Map();
  onBuild = () => {};
  /** @type {Array<{element: HTMLElement, update: () => void}>} */
  #legends = [];
  #pages = new Map();
  /** Of the requests for the images now shown. @type {import("../scope.js").Scope} */
  #run;
  /** @type {Map<NodeView, Array<import("../plane.js").Plane[] | undefined>>} Planes by image. */
  #planes = new Map();
  #painted = new WeakMap();
  #pending = 0;
  #asked = "";
  #patience = () => {};
  #seen = new Set();

  /**
   * @param {HTMLElement} container
   * @param {import("../shell/context.js").Context} context Of one network, language and theme.
   */
  constructor(container, context) {
    this.context = context;
    const { scope, network, store } = context;
    this.folded = foldedAtFirst(network);
    this.rows = network.isChain ? ROWS_OF_CHAIN : ROWS_OF_OTHERS;
    this.edges = new Edges(network);
    this.chip = new Chip();
    this.world = el("div.world");
    this.sizer = el("div.sizer", {}, this.world);
    this.element = el("div.overview", { tabindex: -1, dataset: { state: "busy" } }, this.sizer);
    container.append(this.element, this.chip.element);
    this.zoom = new Zoom(this.element, this.sizer, this.world, scope);
    this.painter = new Painter(scope, () => this.#settle());
    this.observer = scope.observer(
      new IntersectionObserver((entries) => this.#look(entries), { root: this.element, rootMargin: "200px" }),
    );
    this.pointing = new Pointing(this);
    this.keys = new Keys(this);
    scope.observer(new ResizeObserver(() => this.#place())).observe(this.element);
    this.#run = scope.child();
    store.subscribe(["chosen", "images"], () => this.#rechosen(), scope);
    store.subscribe(["details"], () => this.build(), scope);
    store.subscribe(["attempt"], () => this.#refresh(), scope);
    store.subscribe(["scale"], () => (this.#makeLegends(), this.#colour()), scope);
    this.build();
  }

  /** Images side by side, as far as they are there. */
  get images() {
    const { store } = this.context;
    return store
      .get("chosen")
      .map((id) => store.get("images").find((image) => image.id === id))
      .filter((image) => image !== undefined);
  }

  /** Makes all nodes anew: after folding, and for other details or another number of images. Calls `onBuild`. */
  build() {
    const { network, store } = this.context;
    this.count = Math.max(1, this.images.length);
    const options = { rows: this.rows, images: this.count, details: store.get("details") };
    this.observer.disconnect();
    this.#seen.clear();
    this.#planes.clear();
    this.views = new Map(
      nodesOf(network, this.folded).map((node) => {
        /** @type {NodeView} */
        const view = new NodeView(node, network, options, {
          name: () => store.set({ article: sectionOf(node.layer.kind) }),
          unfold: () => this.fold(node.block.name, false),
          page: () => this.#turned(view),
        });
        if (this.#pages.has(node.id)) view.showPage(this.#pages.get(node.id));
        return [node.id, view];
      }),
    );
    const output = [...this.views.values()].find((view) => view.shape === "classes");
    this.classes = output ? new Classes(output) : null;
    this.legendLayer = el("div.legends");
    this.frameLayer = el("div.frames");
    replace(
      this.world,
      this.frameLayer,
      this.edges.elements,
      [...this.views.values()].map(({ element }) => element),
      this.legendLayer,
    );
    this.element.classList.toggle("has-details", options.details);
    this.#place();
    for (const view of this.views.values()) this.observer.observe(view.element);
    this.keys.rest();
    this.onBuild();
    this.#refresh();
  }

  /** Folds a block, or opens it. */
  fold(name, fold) {
    if (fold) this.folded.add(name);
    else this.folded.delete(name);
    this.build();
  }

  /** Folds all blocks, or opens all. */
  foldAll(fold) {
    this.folded = new Set(fold ? this.context.network.blocks.map((block) => block.name) : []);
    this.build();
    this.zoom.fit();
  }

  /** What is shown of a layer of an image. */
  planesOf(view, image) {
    return this.#planes.get(view)?.[image];
  }

  /** Layers of the nodes in sight, but the image. @returns {Set<import("../network.js").Layer>} */
  shownLayers() {
    return new Set(
      [...this.#seen].map((view) => view.node.layer).filter((layer) => layer !== this.context.network.input),
    );
  }

  #place() {
    const { network, store } = this.context;
    const nodes = [...this.views.values()].map((view) => view.node);
    this.layout = layOut(nodes, network, {
      rows: this.rows,
      images: this.count,
      details: store.get("details"),
      room: { width: this.element.clientWidth, height: this.element.clientHeight },
    });
    this.zoom.resize(this.layout);
    for (const view of this.views.values()) view.stand(this.layout.boxes.get(view.node.id));
    replace(
      this.frameLayer,
      frames(network, this.views, this.layout, (name) => this.fold(name, true)),
    );
    this.edges.draw(this.views, this.layout);
    this.#makeLegends();
  }

  #makeLegends() {
    const { ranges, tables, store } = this.context;
    this.#legends = store.get("details") ? legends(this.views.values(), this.layout, ranges, tables) : [];
    replace(
      this.legendLayer,
      this.#legends.map(({ element }) => element),
    );
    for (const legend of this.#legends) legend.update();
  }

  #rechosen() {
    // An image that a link names comes after its name.
    if (this.images.map(({ id }) => id).join(" ") === this.#asked) return;
    if (Math.max(1, this.images.length) === this.count) this.#refresh();
    else this.build();
  }

  /** Asks for everything that is in sight, for the images now chosen. */
  #refresh() {
    this.#run.close();
    this.#run = this.context.scope.child();
    this.#pending = 0;
    this.#asked = this.images.map(({ id }) => id).join(" ");
    this.element.dataset.state = "busy";
    for (const view of this.#seen) this.#want(view);
    this.#classify();
    this.#settle();
  }

  #look(entries) {
    for (const { target, isIntersecting } of entries) {
      const view = this.views.get(target.dataset.node);
      if (!view || view.element !== target) continue;
      if (!isIntersecting) this.#seen.delete(view);
      else if (!this.#seen.has(view)) {
        this.#seen.add(view);
        this.#want(view);
      }
    }
  }

  #turned(view) {
    this.#pages.set(view.node.id, view.page);
    this.#planes.delete(view);
    this.edges.draw(this.views, this.layout);
    this.#want(view);
  }

  #want(view) {
    if (view.shape === "classes") return;
    const { maps } = this.context;
    const { signal } = this.#run;
    const { layer } = view.node;
    this.images.forEach((image, i) => {
      const wish =
        view.shape === "maps"
          ? maps.planes(image, layer, view.channels, signal)
          : maps.unitPlane(image, layer, signal).then((plane) => [plane]);
      this.#await(wish, image, (planes) => {
        const all = this.#planes.get(view) ?? [];
        all[i] = planes;
        this.#planes.set(view, all);
        this.#painted.delete(view);
      });
    });
  }

  #classify() {
    const { network } = this.context;
    const { signal } = this.#run;
    this.images.forEach((image, i) => {
      const answer = image.asRequest().then((images) =>
        call(
          "Classify",
          {
            model: network.model,
            version: network.version,
            images,
            topK: 1,
            includeScores: true,
            includeLogits: true,
          },
          { signal },
        ),
      );
      this.#await(answer, image, ({ results: [result], computeMs, queueMs }) => {
        this.classes?.take(i, result.scores, result.logits);
        this.context.answered({ image, result, computeMs: computeMs ?? 0, queueMs: queueMs ?? 0 });
      });
    });
  }

  /** Counts an answer that is waited for; colours come when none is, or patience ends. */
  async #await(answer, image, take) {
    const { signal } = this.#run;
    this.#pending++;
    this.element.dataset.state = "busy";
    try {
      const value = await answer;
      if (!signal.aborted) take(value);
    } catch (error) {
      if (!signal.aborted) this.context.report(error, image);
    }
    if (signal.aborted) return;
    this.#pending--;
    this.#patience();
    if (!this.#pending) this.#colour();
    else this.#patience = this.#run.after(PATIENCE_MS, () => this.#colour());
  }

  /** Paints what is new, or whose range is another now, and corrects every legend. */
  #colour() {
    const { ranges, tables } = this.context;
    for (const [view, planes] of this.#planes) {
      const { layer } = view.node;
      const range = ranges.of(layer);
      const key = `${range.low} ${range.high}`;
      if (this.#painted.get(view) === key) continue;
      this.#painted.set(view, key);
      planes.forEach((list, i) => {
        this.painter.add(`${view.node.id} ${i}`, () => view.paint(i, list, tables[ranges.table(layer)], range));
      });
    }
    for (const legend of this.#legends) legend.update();
    this.#settle();
  }

  #settle() {
    const rests = !this.#pending && this.painter.idle;
    if (rests) this.element.dataset.shown = this.#asked;
    this.element.dataset.state = rests ? "ready" : "busy";
  }
}
