/** Asks for the address of a picture. */

import { el } from "../element.js";
import { t } from "../text.js";
import { dialog } from "./dialog.js";

/** @param {import("./own.js").Own} own */
export function askForAddress(own) {
  dialog(t("images.addressTitle"), (scope, close) => {
    const field = el("input", {
      type: "url",
      required: true,
      placeholder: "https://",
      id: "address",
      "aria-label": t("images.addressTitle"),
    });
    const note = el("p.quiet", { role: "status" }, t("images.addressNote"));
    const go = el("button.primary", { type: "submit" }, t("images.take"));
    const form = el("form", {}, el("div.field-row", {}, field, go), note);
    scope.listen(form, "submit", async (event) => {
      event.preventDefault();
      go.disabled = true;
      if (await own.fromAddress(field.value)) return close();
      go.disabled = false;
      note.textContent = t("images.refused.address", { address: field.value });
      return field.focus();
    });
    return form;
  });
}
