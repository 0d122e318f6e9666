/** The help: what keys and fingers do. */

import { el } from "../element.js";
import { lookUp, t } from "../text.js";
import { dialog } from "./dialog.js";

export function help() {
  dialog(t("help.title"), () => [
    el("p", {}, t("help.lead")),
    el(
      "dl.keys",
      {},
      lookUp("help.keys").map(([keys, meaning]) => [
        el(
          "dt",
          {},
          keys.split(" ").map((key) => el("kbd", {}, key)),
        ),
        el("dd", {}, meaning),
      ]),
    ),
  ]);
}
