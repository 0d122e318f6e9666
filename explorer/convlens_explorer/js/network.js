/**
 * A served network, ready to draw: GetModel's and GetGraph's answers with every number a number and every field there.
 *
 * @typedef {object} Layer
 * @property {string} name
 * @property {string} kind
 * @property {string} opType
 * @property {string[]} inputs Names of the layers before it; "input" is the image.
 * @property {number[]} shape Channels, height, width; or units.
 * @property {number[]} kernel
 * @property {number[]} stride
 * @property {number[]} padding
 * @property {number[]} dilation
 * @property {number} groups
 * @property {number} parameters
 * @property {number} multiplyAccumulates
 * @property {number[]} receptiveField
 * @property {number[]} receptiveFieldStride
 * @property {number[]} receptiveFieldStart
 * @property {number} column
 * @property {number} lane
 * @property {number} units
 * @property {number} inputUnits
 * @property {number} connections
 * @property {number} denseConnections
 *
 * @typedef {{name: string, layers: string[], parent: string}} Block
 */

import { call } from "./api.js";

/** The name of the image among the layers. */
export const INPUT = "input";

const NO_LAYER = {
  name: "",
  kind: "",
  opType: "",
  inputs: [],
  shape: [],
  kernel: [],
  stride: [],
  padding: [],
  dilation: [],
  groups: 0,
  parameters: 0,
  multiplyAccumulates: 0,
  receptiveField: [],
  receptiveFieldStride: [],
  receptiveFieldStart: [],
  column: 0,
  lane: 0,
  units: 0,
  inputUnits: 0,
  connections: 0,
  denseConnections: 0,
};

export class Network {
  /** @type {Map<string, Layer>} */
  #byName = new Map();
  #targets = new Map();

  /** Asks the server for a version of a model; 0 is the default one. */
  static async load(model, version, signal) {
    const body = { model, version };
    const [description, graph] = await Promise.all([
      call("GetModel", body, { signal }),
      call("GetGraph", body, { signal }),
    ]);
    return new Network(description, graph);
  }

  /** @param {object} description GetModelResponse @param {object} graph GetGraphResponse */
  constructor(description, graph) {
    /** What it was made of: two networks of the same are the same to draw. */
    this.source = JSON.stringify([description, graph]);
    this.model = description.model;
    this.version = Number(description.version);
    this.versions = (description.readyVersions ?? []).map(Number);
    /** @type {string[]} */
    this.labels = description.labels ?? [];
    this.height = description.height;
    this.width = description.width;
    this.channels = description.channels;
    this.parameters = Number(description.parameters ?? 0);
    this.multiplyAccumulates = Number(description.multiplyAccumulates ?? 0);
    this.device = description.device ?? "";
    this.manifest = JSON.parse(description.manifestJson || "{}");
    /** The image, as a layer. @type {Layer} */
    this.input = {
      ...NO_LAYER,
      name: INPUT,
      kind: INPUT,
      shape: [this.channels, this.height, this.width],
      units: this.channels * this.height * this.width,
    };
    /** In the order of computation, without the input. @type {Layer[]} */
    this.layers = (graph.layers ?? []).map(({ layer, ...place }) => numbers({ ...NO_LAYER, ...layer, ...place }));
    /** @type {Array<{source: string, target: string}>} */
    this.edges = graph.edges ?? [];
    /** @type {Block[]} */
    this.blocks = (graph.blocks ?? []).map((block) => ({ parent: "", ...block }));
    this.columns = graph.columns ?? 1;
    for (const layer of [this.input, ...this.layers]) this.#byName.set(layer.name, layer);
    for (const { source, target } of this.edges) this.#targets.set(source, [...this.targets(source), target]);
  }

  /** @param {string} name @returns {Layer | undefined} "input" is one of them. */
  layer(name) {
    return this.#byName.get(name);
  }

  /** Names of the layers that take a layer's output. @returns {string[]} */
  targets(name) {
    return this.#targets.get(name) ?? [];
  }

  /** Whether layers lie one behind the other, without branches. */
  get isChain() {
    return this.layers.every((layer) => layer.inputs.length === 1 && this.targets(layer.name).length <= 1);
  }

  /** The layer whose units are the classes' scores. */
  get output() {
    return this.layers[this.layers.length - 1];
  }

  /** The layer whose units are the logits: the one before softmax, or the last. */
  get logits() {
    const last = this.output;
    return (last.kind === "softmax" && this.layer(last.inputs[0])) || last;
  }
}

/** Whether a layer has maps: channels with rows and columns. */
export function hasMaps(layer) {
  return layer.shape.length === 3;
}

/** How many channels a layer has; for one without positions its units. */
export function channelsOf(layer) {
  return hasMaps(layer) ? layer.shape[0] : layer.shape.reduce((product, size) => product * size, 1);
}

function numbers(layer) {
  for (const [name, value] of Object.entries(NO_LAYER))
    if (typeof value === "number") layer[name] = Number(layer[name]);
  return layer;
}
