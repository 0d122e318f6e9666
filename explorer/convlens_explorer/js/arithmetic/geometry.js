/**
 * Where windows of convolutions and poolings lie. Rows come before columns everywhere.
 *
 * @typedef {object} Geometry A window and how it moves, in cells of the layer's input.
 * @property {number[]} kernel Rows and columns of the window.
 * @property {number[]} stride Cells between neighbouring windows.
 * @property {number[]} padding Top, left, bottom, right.
 * @property {number[]} dilation Cells between neighbouring values of a window; 1 is a dense one.
 */

/** Cells that a window spans along one axis, what lies between its values included. */
export function span(kernel, dilation) {
  return (kernel - 1) * dilation + 1;
}

/**
 * Windows that fit along one axis. Not a whole number where the stride leaves a rest; below 1 where none fits.
 */
export function outputSize(input, before, after, kernel, stride, dilation) {
  return (input + before + after - span(kernel, dilation)) / stride + 1;
}

/**
 * The geometry of a layer of the catalogue; what it leaves out is that of a single cell.
 * @param {import("../network.js").Layer} layer
 * @returns {Geometry}
 */
export function geometryOf(layer) {
  const given = (values, otherwise) => (values?.length ? values : otherwise);
  return {
    kernel: given(layer.kernel, [1, 1]),
    stride: given(layer.stride, [1, 1]),
    padding: given(layer.padding, [0, 0, 0, 0]),
    dilation: given(layer.dilation, [1, 1]),
  };
}

/**
 * The window of one output cell.
 *
 * @param {Geometry} geometry
 * @param {number} row Of the output.
 * @param {number} column Of the output.
 * @returns {{top: number, left: number, rows: number, columns: number, step: number[]}} Its first cell, which may lie
 *   in padding, its values along each axis, and the distance between them.
 */
export function windowAt(geometry, row, column) {
  return {
    top: row * geometry.stride[0] - geometry.padding[0],
    left: column * geometry.stride[1] - geometry.padding[1],
    rows: geometry.kernel[0],
    columns: geometry.kernel[1],
    step: geometry.dilation,
  };
}

/** Whether a window takes the input's cell. */
export function takes(window, row, column) {
  const [down, across] = [row - window.top, column - window.left];
  return (
    down >= 0 &&
    across >= 0 &&
    down % window.step[0] === 0 &&
    across % window.step[1] === 0 &&
    down / window.step[0] < window.rows &&
    across / window.step[1] < window.columns
  );
}

/**
 * The output cell whose window lies closest around an input cell.
 *
 * @param {Geometry} geometry
 * @param {number[]} output Rows and columns of the output.
 * @param {number} row Of the input; may lie in padding.
 * @param {number} column Of the input.
 * @returns {number[]} Row and column of the output.
 */
export function unitAround(geometry, output, row, column) {
  return [row, column].map((cell, axis) => {
    const half = (span(geometry.kernel[axis], geometry.dilation[axis]) - 1) / 2;
    const unit = Math.round((cell + geometry.padding[axis] - half) / geometry.stride[axis]);
    return Math.min(output[axis] - 1, Math.max(0, unit));
  });
}
