/** Several planes at once. */

import { convolve } from "../arithmetic/convolve.js";
import { symmetric } from "../paint.js";
import { Plane } from "../plane.js";

/** How long a convolution may keep the page busy at a time, milliseconds. */
const SLICE_MS = 6;

/**
 * Each input map convolved with its kernel, without bias; in slices, so that the page stays awake.
 * @param {Plane[]} inputs
 * @param {Float32Array[]} kernels One an input.
 * @param {import("../arithmetic/geometry.js").Geometry} geometry
 * @param {number[]} output Rows and columns.
 * @param {import("../scope.js").Scope} scope
 * @returns {Promise<Plane[]>}
 */
export async function intermediatesOf(inputs, kernels, geometry, output, scope) {
  const planes = [];
  let begun = performance.now();
  for (let i = 0; i < inputs.length; i++) {
    const { values, height, width } = inputs[i];
    const rows = convolve(values, [height, width], kernels[i], geometry, output);
    let step = rows.next();
    while (!step.done) {
      if (performance.now() - begun > SLICE_MS) {
        await scope.breath();
        begun = performance.now();
      }
      step = rows.next();
    }
    planes.push(Plane.of(step.value, output[0], output[1]));
  }
  return planes;
}

/** The range that holds all planes, symmetric. @param {Plane[]} planes */
export function shared(planes) {
  return symmetric(Math.min(...planes.map(({ low }) => low)), Math.max(...planes.map(({ high }) => high)));
}

/** Planes of one size as one array, for export. @param {Plane[]} planes */
export function stacked(planes) {
  const [{ height, width }] = planes;
  const values = new Float32Array(planes.length * height * width);
  planes.forEach((plane, i) => values.set(plane.values, i * height * width));
  return { shape: [planes.length, height, width], values };
}
