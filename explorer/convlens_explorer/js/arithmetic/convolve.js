/** The arithmetic of layers on maps that the page holds: what the animations show between two answers of the server. */

import { windowAt } from "./geometry.js";

/**
 * Slides one kernel over one map, a row of the output at a time so that the page stays awake.
 *
 * @param {Float32Array} map Row-major.
 * @param {number[]} size Its rows and columns.
 * @param {Float32Array} kernel Row-major.
 * @param {import("./geometry.js").Geometry} geometry
 * @param {number[]} output Rows and columns of the result.
 * @yields {number} The rows done.
 * @returns {Generator<number, Float32Array>} The sums, without bias.
 */
export function* convolve(map, size, kernel, geometry, output) {
  const sums = new Float32Array(output[0] * output[1]);
  const [rows, columns] = geometry.kernel;
  const [down, across] = geometry.dilation;
  for (let y = 0; y < output[0]; y++) {
    for (let x = 0; x < output[1]; x++) {
      const { top, left } = windowAt(geometry, y, x);
      let sum = 0;
      for (let i = 0; i < rows; i++) {
        const row = top + i * down;
        if (row < 0 || row >= size[0]) continue;
        for (let j = 0; j < columns; j++) {
          const column = left + j * across;
          if (column >= 0 && column < size[1]) sum += map[row * size[1] + column] * kernel[i * columns + j];
        }
      }
      sums[y * output[1] + x] = sum;
    }
    yield y + 1;
  }
  return sums;
}

/**
 * The values that a window takes of a map.
 *
 * @param {(row: number, column: number) => number} at Gives a cell of the map.
 * @param {number[]} size Its rows and columns.
 * @param {{top: number, left: number, rows: number, columns: number, step: number[]}} window
 * @param {number} outside What padding holds.
 * @returns {number[]} Row-major.
 */
export function patch(at, size, window, outside = 0) {
  const values = [];
  for (let i = 0; i < window.rows; i++) {
    for (let j = 0; j < window.columns; j++) {
      const [row, column] = [window.top + i * window.step[0], window.left + j * window.step[1]];
      const inside = row >= 0 && column >= 0 && row < size[0] && column < size[1];
      values.push(inside ? at(row, column) : outside);
    }
  }
  return values;
}

/** The sum of products of two lists of the same length. */
export function dot(values, weights) {
  return values.reduce((sum, value, i) => sum + value * weights[i], 0);
}

/** Rows of numbers convolved with a kernel of rows, without padding: for examples by hand. */
export function convolveRows(rows, kernel) {
  const geometry = {
    kernel: [kernel.length, kernel[0].length],
    stride: [1, 1],
    padding: [0, 0, 0, 0],
    dilation: [1, 1],
  };
  return slide(rows, geometry, (values) => dot(values, kernel.flat()));
}

/** Rows of numbers, the largest of each square taken: for examples by hand. */
export function poolRows(rows, side) {
  const geometry = { kernel: [side, side], stride: [side, side], padding: [0, 0, 0, 0], dilation: [1, 1] };
  return slide(rows, geometry, (values) => Math.max(...values));
}

function slide(rows, geometry, reduce) {
  const size = [rows.length, rows[0].length];
  const output = size.map((cells, axis) => Math.floor((cells - geometry.kernel[axis]) / geometry.stride[axis]) + 1);
  return Array.from({ length: output[0] }, (_, y) =>
    Array.from({ length: output[1] }, (_, x) =>
      reduce(patch((row, column) => rows[row][column], size, windowAt(geometry, y, x))),
    ),
  );
}
