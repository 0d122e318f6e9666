/**
 * @typedef {object} Outward How what is shown tells the page around it of something.
 * @property {(error: unknown, image?: import("../images.js").PageImage) => void} report Of a failure, of a request with
 *   this image; the page says it, and tries again where that may help.
 * @property {(answer: Answer) => void} answered Of a classification.
 *
 * @typedef {import("../views/index.js").Context & Outward} Context What the overview works with.
 *
 * @typedef {object} Answer
 * @property {import("../images.js").PageImage} image
 * @property {{scores: number[], logits: number[]}} result
 * @property {number} computeMs
 * @property {number} queueMs
 */
export {};
