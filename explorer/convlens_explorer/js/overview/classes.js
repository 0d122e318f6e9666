/** The last column: what the network says of the images, as a bar for each class. */

import { el, replace } from "../element.js";
import { t } from "../text.js";

const MOST_IN_ORDER = 12;

/** Shows scores in a NodeView of shape "classes". */
export class Classes {
  /** @param {import("./node.js").NodeView} view */
  constructor(view) {
    this.view = view;
    this.labels = view.network.labels;
    /** One list of scores and logits for each image. @type {Array<{scores: number[], logits: number[]} | undefined>} */
    this.results = [];
    this.#make(this.#shown());
  }

  /** Takes the answer for an image and shows it. */
  take(image, scores, logits) {
    this.results[image] = { scores, logits };
    const shown = this.#shown();
    if (shown.join() !== this.view.rows.map(({ channel }) => channel).join()) this.#make(shown);
    for (const { channel, button, pictures } of this.view.rows) {
      this.results.forEach((result, i) => {
        const score = result?.scores[channel] ?? 0;
        pictures[i]?.style.setProperty("--score", String(score));
        const value = pictures[i]?.querySelector(".value");
        if (value) value.textContent = result ? percent(score) : "";
      });
      button.classList.toggle("is-best", best(this.results[0]?.scores ?? []) === channel);
    }
  }

  /** What to say of a class when one points at it. */
  tip(channel, image) {
    const result = this.results[image];
    if (!result) return [this.labels[channel] ?? String(channel)];
    return [
      this.labels[channel] ?? String(channel),
      t("overview.scoreIs", { score: result.scores[channel].toFixed(4) }),
      t("overview.logitIs", { logit: result.logits[channel].toFixed(3) }),
    ];
  }

  /** Few classes all stand in their order; of many the likeliest of any image, the first image's first. */
  #shown() {
    if (this.labels.length <= MOST_IN_ORDER) return this.labels.map((_, i) => i);
    const most = this.view.options.rows;
    const found = new Set();
    for (let rank = 0; found.size < most && rank < most; rank++) {
      for (const result of this.results) {
        const ranked = result && order(result.scores, most)[rank];
        if (ranked !== undefined && found.size < most) found.add(ranked);
      }
    }
    return found.size ? [...found] : this.labels.slice(0, most).map((_, i) => i);
  }

  #make(channels) {
    const { view } = this;
    view.rows = channels.map((channel) => {
      const pictures = Array.from({ length: view.options.images }, () => el("span.score", {}, el("span.value")));
      const button = el(
        "button.map.class",
        { type: "button", tabindex: -1, dataset: { channel } },
        el("span.label", {}, this.labels[channel] ?? String(channel)),
        " ",
        el(
          "span.bars",
          {},
          pictures.map((picture) => [picture, " "]),
        ),
      );
      return { channel, button, pictures };
    });
    view.element.classList.toggle("is-dense", channels.length > view.options.rows);
    replace(
      view.body,
      view.rows.map(({ button }) => button),
    );
  }
}

function order(scores, most) {
  return scores
    .map((_, i) => i)
    .sort((a, b) => scores[b] - scores[a])
    .slice(0, most);
}

function best(scores) {
  return scores.indexOf(Math.max(...scores));
}

function percent(score) {
  if (score > 0 && score < 0.0005) return "<0.1 %";
  return `${(100 * score).toFixed(score >= 0.0995 ? 0 : 1)} %`;
}
