/** The explanation's sections in reading order, with the kinds of layers that each is about. */
export const SECTIONS = {
  network: [],
  input: ["input"],
  convolution: ["conv", "conv_transpose"],
  connections: [],
  activation: [
    "relu",
    "leaky_relu",
    "prelu",
    "sigmoid",
    "hard_sigmoid",
    "hard_swish",
    "silu",
    "swish",
    "tanh",
    "gelu",
    "elu",
    "clip",
    "mish",
  ],
  normalisation: ["batch_norm", "layer_norm", "group_norm", "instance_norm", "lrn"],
  pooling: ["max_pool", "average_pool", "global_average_pool", "global_max_pool"],
  joining: ["add", "mul", "concat"],
  flatten: ["flatten"],
  dense: ["dense"],
  softmax: ["softmax"],
  field: [],
  attribution: [],
};

/** The section about a kind of layer; that about networks if there is none. */
export function sectionOf(kind) {
  return Object.keys(SECTIONS).find((name) => SECTIONS[name].includes(kind)) ?? "network";
}
