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
    this.ways = el("div.ways");
    this.element = el("section.gallery", { "aria-label": t("images.title") }, this.thumbs, this.ways, this.file);
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
        return el(
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
      }),
    );
    if (hadFocus) this.thumbs.querySelector(`[data-image="${CSS.escape(hadFocus)}"]`)?.focus();
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
      way("file", () => this.file.click()),
      way("address", () => askForAddress(this.own)),
      navigator.mediaDevices && way("camera", () => openCamera(this.own)),
      network?.channels === 1 && way("draw", () => openPad(this.own, network)),
      way("several", () => this.#switch(!this.#several), { "aria-pressed": String(this.#several) }),
    );
  }
}
