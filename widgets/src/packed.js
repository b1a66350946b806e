/** Logits as Python packs them: 16-bit integers with a scale for each example. */

/** @import { Packed } from "./protocol.js" */

/**
 * @param {Packed} packed
 * @returns {Float64Array[]} one an example, its numbers in a row
 */
export function unpack({ shape, scale, data }) {
  const binary = atob(data);
  const size = shape.slice(1).reduce((product, length) => product * length, 1);
  /** @param {number} at */
  const integer = (at) => ((binary.charCodeAt(2 * at) | (binary.charCodeAt(2 * at + 1) << 8)) << 16) >> 16;
  return Array.from({ length: shape[0] }, (_, row) => Float64Array.from({ length: size }, (_, at) => scale[row] * integer(row * size + at)));
}
