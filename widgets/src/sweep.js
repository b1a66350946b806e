/** What the edit does at a strength that may lie between the strengths that were computed. */

/** @import { Sweep } from "./protocol.js" */

/**
 * @typedef {object} Response
 * @property {number} kl_top
 * @property {number} kl_baseline
 * @property {number | null} kl_random
 * @property {number[][]} probabilities shown top rows x classes
 * @property {boolean} computed true on a grid point, false between two
 */

/**
 * The grid interval around a strength and how far into it the strength lies. Outside the grid the nearest end is taken:
 * nothing is known there, and a straight line onwards would leave the simplex.
 * @param {number[]} grid rising
 * @param {number} strength
 */
export function bracket(grid, strength) {
  const last = grid.length - 1;
  if (strength <= grid[0]) return { low: 0, high: 0, t: 0 };
  if (strength >= grid[last]) return { low: last, high: last, t: 0 };
  let high = 1;
  while (grid[high] < strength) high += 1;
  const t = (strength - grid[high - 1]) / (grid[high] - grid[high - 1]);
  // the slider's steps are decimal fractions: without a tolerance they would never meet a grid point
  if (t < 1e-6) return { low: high - 1, high: high - 1, t: 0 };
  if (t > 1 - 1e-6) return { low: high, high, t: 0 };
  return { low: high - 1, high, t };
}

/** @param {number} a @param {number} b @param {number} t */
const between = (a, b, t) => (1 - t) * a + t * b;

/**
 * KL is interpolated on its square root: near zero KL grows with the square of the strength, so its root is straight
 * there, and the plot, which has a root scale, shows the same line. Rounding may leave a KL below zero; it counts as zero.
 * @param {number[]} values
 * @param {{ low: number, high: number, t: number }} at
 */
function kl(values, { low, high, t }) {
  return between(Math.sqrt(Math.max(0, values[low])), Math.sqrt(Math.max(0, values[high])), t) ** 2;
}

/**
 * @param {Sweep} sweep
 * @param {number} strength
 * @returns {Response}
 */
export function responseAt(sweep, strength) {
  const at = bracket(sweep.strengths, strength);
  const [low, high] = [sweep.probabilities[at.low], sweep.probabilities[at.high]];
  const [first, last] = [sweep.strengths[0], sweep.strengths[sweep.strengths.length - 1]];
  return {
    kl_top: kl(sweep.kl_top, at),
    kl_baseline: kl(sweep.kl_baseline, at),
    kl_random: sweep.kl_random.length ? kl(sweep.kl_random, at) : null,
    probabilities: low.map((row, i) => row.map((p, c) => between(p, high[i][c], at.t))),
    computed: at.low === at.high && strength >= first - 1e-9 && strength <= last + 1e-9,
  };
}

/** Mean over the rows, one number a class. @param {number[][]} probabilities */
export function meanProbabilities(probabilities) {
  const classes = probabilities[0]?.length ?? 0;
  return Array.from({ length: classes }, (_, c) => probabilities.reduce((sum, row) => sum + row[c], 0) / probabilities.length);
}

/** @param {number[]} row */
export function likeliest(row) {
  let best = 0;
  for (let c = 1; c < row.length; c++) if (row[c] > row[best]) best = c;
  return best;
}

/**
 * The classes worth a line, in an order that stays while the slider moves: those that are likely before the edit or
 * become likely anywhere in the sweep, by their mean before it.
 * @param {Sweep} sweep
 * @param {number} most
 */
export function classesToShow(sweep, most) {
  const means = sweep.probabilities.map(meanProbabilities);
  const before = meanProbabilities(responseAt(sweep, 0).probabilities);
  const peak = before.map((_, c) => Math.max(...means.map((mean) => mean[c])));
  return before
    .map((_, c) => c)
    .sort((a, b) => peak[b] - peak[a] || a - b)
    .slice(0, most)
    .sort((a, b) => before[b] - before[a] || a - b);
}
