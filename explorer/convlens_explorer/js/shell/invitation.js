/** What one is told of a model without sample images, until there is an image: how to bring one. */

import { el } from "../element.js";
import { t } from "../text.js";

/**
 * @param {import("./context.js").Context} context
 * @param {() => void} choose Lets one choose files.
 */
export function invitation({ store, scope, network }, choose) {
  const { model, version } = network;
  const element = el(
    "section.invitation",
    { "aria-labelledby": "invitation" },
    el("h2", { id: "invitation" }, t("invitation.title")),
    el("p", {}, t("invitation.text", { model })),
    el("button.primary", { type: "button", on: { click: choose } }, t("invitation.choose")),
    el("p.quiet", {}, t("invitation.samples", { folder: `${model}/${version}/samples` })),
  );
  const show = () => (element.hidden = store.get("images").length > 0 || store.get("chosen").length > 0);
  store.subscribe(["images", "chosen"], show, scope);
  show();
  return element;
}
