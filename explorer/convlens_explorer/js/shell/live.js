/** The server's pulse: images a second and the mean time of an answer, from its own metrics. */

import { el, replace, svg } from "../element.js";
import { metrics } from "../api.js";
import { figure } from "../paint.js";
import { t } from "../text.js";

const EVERY_MS = 2000;
const KEPT = 40;

export class Live {
  /** @type {Array<{rate: number, latency: number | null}>} */
  #history = [];
  #last = null;
  #waits = false;

  /**
   * @param {import("../scope.js").Scope} scope
   * @param {(error: unknown) => void} report Is told when the server does not answer.
   */
  constructor(scope, report) {
    this.scope = scope;
    this.report = report;
    this.figures = el("span.live-figures");
    this.line = svg("polyline", { fill: "none", points: "" });
    this.element = el(
      "div.live",
      { title: t("shell.liveLong"), role: "group", "aria-label": t("shell.liveLong") },
      svg("svg", { viewBox: `0 0 ${KEPT - 1} 10`, preserveAspectRatio: "none", "aria-hidden": "true" }, this.line),
      this.figures,
    );
    scope.every(EVERY_MS, () => document.visibilityState === "visible" && this.#look());
    this.#look();
  }

  async #look() {
    // A slow answer's time must not come right before the next one's.
    if (this.#waits) return;
    this.#waits = true;
    try {
      this.#take(readMetrics(await metrics({ signal: this.scope.signal })), performance.now());
    } catch (error) {
      this.#last = null;
      if (!this.scope.closed) this.report(error);
    } finally {
      this.#waits = false;
    }
  }

  #take(now, time) {
    const before = this.#last;
    this.#last = { ...now, time };
    if (!before) return this.#show(null);
    const seconds = Math.max(0.001, (time - before.time) / 1000);
    const answered = now.count - before.count;
    const point = {
      rate: Math.max(0, now.images - before.images) / seconds,
      latency: answered > 0 ? ((now.sum - before.sum) / answered) * 1000 : null,
    };
    this.#history = [...this.#history, point].slice(-KEPT);
    return this.#show(point);
  }

  #show(point) {
    const most = Math.max(1, ...this.#history.map(({ rate }) => rate));
    const start = KEPT - this.#history.length;
    this.line.setAttribute(
      "points",
      this.#history.map(({ rate }, i) => `${start + i},${(9.5 - (rate / most) * 9).toFixed(2)}`).join(" "),
    );
    const rate = point ? (point.rate < 10 ? +point.rate.toFixed(1) : Math.round(point.rate)) : 0;
    replace(
      this.figures,
      el("span", {}, el("b", {}, String(rate)), t("shell.perSecond")),
      el("span", {}, el("b", {}, point?.latency ? figure(point.latency, 2) : "–"), t("shell.milliseconds")),
    );
  }
}

/**
 * The sums over all models of what the strip shows.
 * @param {string} text Prometheus' format.
 */
function readMetrics(text) {
  const sums = { images: 0, count: 0, sum: 0 };
  const names = {
    convlens_images_total: "images",
    convlens_request_seconds_count: "count",
    convlens_request_seconds_sum: "sum",
  };
  for (const line of text.split("\n")) {
    const name = names[/^\w+/.exec(line)?.[0] ?? ""];
    if (name) sums[name] += Number(line.slice(line.lastIndexOf(" ") + 1));
  }
  return sums;
}
