/** The images to choose from: the model's samples, one's own, and the ways to bring one. */

import { el, replace } from "../element.js";
import { t } from "../text.js";
import { askForAddress } from "./address.js";
import { openCamera } from "./camera.js";
import { openPad } from "./pad.js";
import { MOST_SIDE_BY_SIDE } from "./own.js";

export class Gallery {
  #several = false;

  /**
   * @param {import("../store.js").Store} store
   * @param {import("../scope.js").Scope} scope
   * @param {import("./own.js").Own} own
   */
  constructor(store, scope, own) {
    this.store = store;
    this.own = own;
    this.#several = store.get("chosen").length > 1;
    this.thumbs = el("div.thumbs", { role: "group", "aria-label": t("images.choose") });
    this.file = el("input", {
      type: "file",
      accept: "image/*",
      multiple: true,
      hidden: true,
      id: "file",
      on: { change: () => (own.take([...this.file.files]), (this.file.value = "")) },
    });
    this.ways = el("div.ways", { on: { click: () => expand(false) } });
    // On a narrow screen it opens the ways, until one is chosen; elsewhere they are in sight, and it is not.
    const expand = (on) => more.setAttribute("aria-expanded", String(on));
    const more = el(
      "button.more",
      {
        type: "button",
        id: "more",
        "aria-label": t("images.more"),
        title: t("images.more"),
        "aria-expanded": "false",
        on: { click: () => expand(more.getAttribute("aria-expanded") !== "true") },
      },
      "+",
    );
    this.element = el("section.gallery", { "aria-label": t("images.title") }, more, this.thumbs, this.ways, this.file);
    scope.listen(this.thumbs, "keydown", (event) => this.#key(event));
    store.subscribe(["images", "chosen"], () => this.#show(), scope);
    store.subscribe(["network"], () => this.#showWays(), scope);
    this.#show();
    this.#showWays();
  }

  #show() {
    const chosen = this.store.get("chosen");
    if (chosen.length > 1 && !this.#several) this.#switch(true);
    const hadFocus =
      document.activeElement instanceof HTMLElement && this.thumbs.contains(document.activeElement)
        ? document.activeElement.dataset.image
        : null;
    replace(
      this.thumbs,
      this.store.get("images").map((image) => {
        const place = chosen.indexOf(image.id);
        const thumb = el(
          "button.thumb",
          {
            type: "button",
            "aria-pressed": String(place >= 0),
            title: image.name,
            dataset: { image: image.id },
            on: { click: (event) => this.#choose(image.id, event.shiftKey || event.ctrlKey || event.metaKey) },
          },
          el("img", { src: image.url, alt: image.name, draggable: "false" }),
          chosen.length > 1 && place >= 0 && el("span.place", { "aria-hidden": "true" }, "ABCD"[place]),
        );
        return image.origin === "sample" ? thumb : el("span.mine", {}, thumb, this.#remover(image));
      }),
    );
    if (!hadFocus) return;
    const again = this.thumbs.querySelector(`[data-image="${CSS.escape(hadFocus)}"]`);
    (again ?? this.thumbs.querySelector('[aria-pressed="true"]'))?.focus();
  }

  /** Takes one's own image away; the Delete key does it for the one that has the focus, so Tab passes this by. */
  #remover(image) {
    const title = t("images.remove", { name: image.name });
    return el(
      "button.remove",
      { type: "button", tabindex: -1, title, "aria-label": title, on: { click: () => this.own.drop(image) } },
      "×",
    );
  }

  /** Lets one choose files. */
  choose() {
    this.file.click();
  }

  #key(event) {
    const image = this.store.get("images").find(({ id }) => id === event.target.dataset.image);
    if (event.key === "Delete" && image && image.origin !== "sample") this.own.drop(image);
  }

  #choose(id, more) {
    const { store } = this;
    const chosen = store.get("chosen");
    let next = [id];
    if (this.#several || more) {
      if (more) this.#switch(true);
      next = chosen.includes(id) ? chosen.filter((other) => other !== id) : [...chosen, id].slice(-MOST_SIDE_BY_SIDE);
    }
    const trouble = store.get("trouble");
    if (next.length) store.set({ chosen: next, trouble: trouble?.kind === "image" ? null : trouble });
  }

  #switch(on) {
    this.#several = on;
    if (!on && this.store.get("chosen").length > 1) this.store.set({ chosen: this.store.get("chosen").slice(0, 1) });
    this.#showWays();
  }

  #showWays() {
    const network = this.store.get("network");
    const way = (name, click, attributes = {}) =>
      el(
        "button.way",
        { type: "button", id: `way-${name}`, title: t(`images.${name}Long`), on: { click }, ...attributes },
        t(`images.${name}`),
      );
    replace(
      this.ways,
      way("file", () => this.choose()),
      way("address", () => askForAddress(this.own)),
      navigator.mediaDevices && way("camera", () => openCamera(this.own)),
      network?.channels === 1 && way("draw", () => openPad(this.own, network)),
      way("several", () => this.#switch(!this.#several), { "aria-pressed": String(this.#several) }),
    );
  }
}
