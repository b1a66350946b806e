/** What is computed for two decompositions side by side. */

/**
 * @typedef {object} Pair
 * @property {number} a
 * @property {number} b
 * @property {number} agreement
 * @property {number | null} direction null where directions cannot be compared
 * @property {number} coefficients
 */
/** @typedef {{ component: number, label: string, share: number }} Named */
/**
 * @typedef {object} Comparison
 * @property {string} title
 * @property {string} headline
 * @property {number} same agreement from which on two are called the same
 * @property {string} trouble why only coefficients are compared, or ""
 * @property {Record<"a" | "b", { title: string, components: Named[] }>} sides
 * @property {Pair[]} pairs
 * @property {Record<"a" | "b", number[]>} alone
 */
/** @typedef {{ row: number, coefficient: number, text: string, gold: string | null, prediction: string | null }} Example */

/** @typedef {"agreement" | "direction" | "coefficients" | "share" | "a" | "b"} PairSort */
/** @type {[PairSort, string, boolean][]} and whether people expect the largest first */
export const PAIR_SORTS = [
  ["agreement", "agreement", true], ["direction", "direction", true], ["coefficients", "coefficients", true], ["share", "share of a", true], ["a", "number in a", false], ["b", "number in b", false],
];

/** @param {string} sort @returns {{ key: PairSort, falling: boolean }} */
export function parsePairSort(sort) {
  const falling = sort.startsWith("-");
  const key = PAIR_SORTS.find(([known]) => known === sort.slice(falling ? 1 : 0))?.[0];
  return key ? { key, falling } : { key: "agreement", falling: true };
}

/** @param {Comparison} data @param {string} sort @returns {Pair[]} */
export function arrangePairs({ pairs, sides }, sort) {
  const { key, falling } = parsePairSort(sort);
  /** @param {Pair} pair */
  const value = (pair) => (key === "share" ? sides.a.components[pair.a].share : pair[key] ?? 0);
  return [...pairs].sort((x, y) => (falling ? -1 : 1) * (value(x) - value(y)) || x.a - y.a);
}

/**
 * Rows and columns of the matrix so that pairs lie on its diagonal, and what is alone stands after them.
 * @param {Pair[]} pairs in order
 * @param {Record<"a" | "b", number[]>} alone
 */
export function matrixOrder(pairs, alone) {
  return { rows: [...pairs.map(({ a }) => a), ...alone.a], columns: [...pairs.map(({ b }) => b), ...alone.b] };
}

/**
 * The matrix in another order and no finer than the screen; a cell that stands for several has their largest value, so that no pair gets lost.
 * @param {Uint8Array} values rows of a by columns of b
 * @param {number} nColumns of `values`
 * @param {number[]} rows
 * @param {number[]} columns
 * @param {number} high
 * @param {number} wide drawn cells, at most as many as rows and columns
 */
export function pooled(values, nColumns, rows, columns, high, wide) {
  const out = new Uint8Array(high * wide);
  rows.forEach((row, r) => {
    const y = Math.floor((r * high) / rows.length);
    columns.forEach((column, c) => {
      const at = y * wide + Math.floor((c * wide) / columns.length);
      out[at] = Math.max(out[at], values[row * nColumns + column]);
    });
  });
  return out;
}

/** Of a row or a column the place of its largest value, among the components of the other side. @param {Uint8Array} values @param {number} nColumns @param {"a" | "b"} side @param {number} number */
export function mostAlike(values, nColumns, side, number) {
  const others = side === "a" ? nColumns : values.length / nColumns;
  /** @param {number} i */
  const value = (i) => (side === "a" ? values[number * nColumns + i] : values[i * nColumns + number]);
  let best = 0;
  for (let i = 1; i < others; i++) if (value(i) > value(best)) best = i;
  return best;
}

/** Rank from 1 of each example of one list in the other. @param {Example[]} other @returns {Map<number, number>} */
export function ranks(other) {
  return new Map(other.map(({ row }, i) => [row, i + 1]));
}
