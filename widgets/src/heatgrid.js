/** Arithmetic of the big heatmap: many examples share a pixel column, and a column shows its largest value. */

/**
 * @param {number} column
 * @param {number} columns
 * @param {number} examples
 * @returns {[number, number]} the examples [from, to) of a drawn column
 */
export function columnRange(column, columns, examples) {
  return [Math.floor((column * examples) / columns), Math.floor(((column + 1) * examples) / columns)];
}

/**
 * @param {Uint8Array} heat components x examples, row-major
 * @param {number} examples
 * @param {number[]} rows component rows, in the order they are drawn
 * @param {number} columns at most `examples`
 * @returns {Uint8Array} rows x columns
 */
export function aggregate(heat, examples, rows, columns) {
  const out = new Uint8Array(rows.length * columns);
  rows.forEach((row, r) => {
    for (let c = 0; c < columns; c++) {
      const [from, to] = columnRange(c, columns, examples);
      let largest = 0;
      for (let i = row * examples + from; i < row * examples + to; i++) if (heat[i] > largest) largest = heat[i];
      out[r * columns + c] = largest;
    }
  });
  return out;
}

/**
 * The example that a column stands for: the one with the largest value, the first among equals.
 * @param {Uint8Array} heat
 * @param {number} examples
 * @param {number} row
 * @param {number} from
 * @param {number} to
 */
export function peak(heat, examples, row, from, to) {
  let best = from;
  for (let i = from + 1; i < to; i++) if (heat[row * examples + i] > heat[row * examples + best]) best = i;
  return best;
}

/**
 * The commonest code of each column, for the strip.
 * @param {number[]} codes
 * @param {number} columns
 */
export function stripCodes(codes, columns) {
  return Array.from({ length: columns }, (_, c) => {
    const [from, to] = columnRange(c, columns, codes.length);
    /** @type {Map<number, number>} */
    const counts = new Map();
    for (let i = from; i < to; i++) counts.set(codes[i], (counts.get(codes[i]) ?? 0) + 1);
    let best = codes[from];
    for (const [code, times] of counts) if (times > (counts.get(best) ?? 0)) best = code;
    return best;
  });
}

/**
 * Few components get tall rows with room for a number, many share a fixed height.
 * @param {number} rows
 */
export function rowHeight(rows) {
  return Math.min(16, Math.max(2, 400 / Math.max(1, rows)));
}

/**
 * @param {number} position in pixels
 * @param {number} size in pixels
 * @param {number} cells
 */
export function cellAt(position, size, cells) {
  return Math.min(cells - 1, Math.max(0, Math.floor((position / size) * cells)));
}
