/** Numbers in rows and columns: one channel of a layer's feature maps, a kernel, a window. */
export class Plane {
  /** @type {Float32Array | null} */
  #values = null;

  /**
   * @param {number} height
   * @param {number} width
   * @param {Uint8Array} bytes height × width; a value is offset + scale × byte.
   * @param {number} scale
   * @param {number} offset
   */
  constructor(height, width, bytes, scale, offset) {
    this.height = height;
    this.width = width;
    this.bytes = bytes;
    this.scale = scale;
    this.offset = offset;
    this.low = offset;
    this.high = offset + 255 * scale;
  }

  /** A plane of exact numbers; its bytes are for painting only. */
  static of(values, height, width) {
    let low = Infinity;
    let high = -Infinity;
    for (const value of values) {
      if (value < low && value > -Infinity) low = value;
      if (value > high && value < Infinity) high = value;
    }
    if (low > high) low = high = 0;
    const scale = (high - low) / 255;
    const bytes = Uint8ClampedArray.from(values, (value) => (scale ? (value - low) / scale : 0));
    const plane = new Plane(height, width, new Uint8Array(bytes.buffer), scale, low);
    plane.#values = Float32Array.from(values);
    return plane;
  }

  /** The values, row by row. */
  get values() {
    return (this.#values ??= Float32Array.from(this.bytes, (byte) => this.offset + this.scale * byte));
  }

  /** Row and column of the value of the largest magnitude; where all are 0, the middle. @returns {[number, number]} */
  strongest() {
    const { height, width, values } = this;
    let best = Math.floor(height / 2) * width + Math.floor(width / 2);
    values.forEach((value, i) => Math.abs(value) > Math.abs(values[best]) && (best = i));
    return [Math.floor(best / width), best % width];
  }

  at(row, column) {
    const index = row * this.width + column;
    return this.#values ? this.#values[index] : this.offset + this.scale * this.bytes[index];
  }
}
