/** Arrays as NumPy's .npz: a zip archive, not compressed, of .npy files. */

/**
 * @typedef {{shape: number[], values: Float32Array | Float64Array | number[]}} Numbers
 */

/**
 * @param {Record<string, Numbers>} arrays By name.
 * @returns {Blob}
 */
export function npz(arrays) {
  return zip(Object.entries(arrays).map(([name, numbers]) => ({ name: `${name}.npy`, bytes: npy(numbers) })));
}

/** One array as .npy, format 1.0: float64 where the values are, else float32; little-endian, row-major. */
function npy({ shape, values }) {
  const double = values instanceof Float64Array;
  const array = double || values instanceof Float32Array ? values : Float32Array.from(values);
  const sizes = shape.length === 1 ? `${shape[0]},` : shape.join(", ");
  const text = `{'descr': '<f${double ? 8 : 4}', 'fortran_order': False, 'shape': (${sizes}), }`;
  // The head's length has to be a multiple of 64, and it ends with a newline.
  const head = text.padEnd(Math.ceil((10 + text.length + 1) / 64) * 64 - 11) + "\n";
  const bytes = new Uint8Array(10 + head.length + array.byteLength);
  bytes.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, head.length & 255, head.length >> 8]);
  bytes.set(new TextEncoder().encode(head), 10);
  bytes.set(new Uint8Array(array.buffer, array.byteOffset, array.byteLength), 10 + head.length);
  return bytes;
}

/** @param {Array<{name: string, bytes: Uint8Array}>} files */
function zip(files) {
  const parts = [];
  const directory = [];
  let at = 0;
  for (const { name, bytes } of files) {
    const title = new TextEncoder().encode(name);
    const common = fields(
      [2, 20],
      [2, 0x800],
      [2, 0],
      [2, 0],
      [2, 0x21],
      [4, crc32(bytes)],
      [4, bytes.length],
      [4, bytes.length],
      [2, title.length],
      [2, 0],
    );
    const local = [fields([4, 0x04034b50]), common, title];
    directory.push(fields([4, 0x02014b50], [2, 20]), common, fields([2, 0], [2, 0], [2, 0], [4, 0], [4, at]), title);
    parts.push(...local, bytes);
    at += 4 + common.length + title.length + bytes.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = fields([4, 0x06054b50], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, size], [4, at], [2, 0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/** Numbers of 2 or 4 bytes, little-endian, one behind the other. */
function fields(...list) {
  const bytes = new Uint8Array(list.reduce((sum, [size]) => sum + size, 0));
  const data = new DataView(bytes.buffer);
  let at = 0;
  for (const [size, value] of list) {
    if (size === 2) data.setUint16(at, value, true);
    else data.setUint32(at, value, true);
    at += size;
  }
  return bytes;
}

/** @type {Uint32Array | null} */
let table = null;

function crc32(bytes) {
  table ??= Uint32Array.from({ length: 256 }, (_, byte) => {
    for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
    return byte;
  });
  let sum = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) sum = table[(sum ^ bytes[i]) & 255] ^ (sum >>> 8);
  return (sum ^ 0xffffffff) >>> 0;
}
