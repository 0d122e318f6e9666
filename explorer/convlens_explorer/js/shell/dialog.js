/** Dialogs, one at a time. */

import { el } from "../element.js";
import { Scope } from "../scope.js";
import { t } from "../text.js";

/**
 * Opens a dialog; Escape, its cross and a click beside it close it.
 * @param {string} title
 * @param {(scope: Scope, close: () => void) => Node | Array} content Its scope ends when the dialog closes.
 */
export function dialog(title, content) {
  const scope = new Scope();
  const close = () => element.close();
  const element = /** @type {HTMLDialogElement} */ (
    el(
      "dialog.dialog",
      { "aria-label": title },
      el(
        "header",
        {},
        el("h2", {}, title),
        el("button.icon", { type: "button", "aria-label": t("shell.close"), on: { click: close } }, "×"),
      ),
    )
  );
  element.append(el("div.dialog-body", {}, content(scope, close)));
  scope.onClose(() => element.remove());
  scope.listen(element, "close", () => scope.close());
  scope.listen(element, "click", (event) => event.target === element && close());
  document.body.append(element);
  element.showModal();
  return close;
}
