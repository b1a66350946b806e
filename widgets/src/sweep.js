/** What the edit does at a strength that may lie between the strengths at which the model was run. */

/** @import { Sweep } from "./protocol.js" */
/** @import { Family, Judge, Response } from "./judge.js" */
import { meanOf } from "./judge.js";
import { unpack } from "./packed.js";

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

/** Was the model run so far out on this side? @param {number[]} grid @param {number} strength */
export function covers(grid, strength) {
  return strength >= grid[0] - 1e-9 && strength <= grid[grid.length - 1] + 1e-9;
}

/** Was the model run at this very strength? @param {number[]} grid @param {number} strength */
export function runAt(grid, strength) {
  return grid.some((one) => Math.abs(one - strength) < 1e-9);
}

/** @param {number} a @param {number} b @param {number} t */
const between = (a, b, t) => (1 - t) * a + t * b;

/**
 * KL is interpolated on its square root: near zero KL grows with the square of the strength, so its root is straight
 * there, and the plot, which has a root scale, shows the same line. Rounding may leave a KL below zero; it counts as zero.
 * @param {number[]} values
 * @param {{ low: number, high: number, t: number }} at
 */
export function klBetween(values, { low, high, t }) {
  return between(Math.sqrt(Math.max(0, values[low])), Math.sqrt(Math.max(0, values[high])), t) ** 2;
}

/** @param {Sweep} sweep @param {number} strength */
export function randomAt(sweep, strength) {
  return sweep.kl_random.length ? klBetween(sweep.kl_random, bracket(sweep.strengths, strength)) : null;
}

/**
 * Between strengths from probabilities of the shown examples alone: where there are too many classes to keep more.
 * @param {Sweep} sweep
 * @param {number} strength
 * @returns {Response}
 */
export function roughAt(sweep, strength) {
  const at = bracket(sweep.strengths, strength);
  const [low, high] = [sweep.probabilities?.[at.low] ?? [], sweep.probabilities?.[at.high] ?? []];
  const rows = low.map((row, i) => row.map((p, c) => between(p, high[i][c], at.t)));
  return {
    kl_top: klBetween(sweep.kl_top, at), kl_baseline: klBetween(sweep.kl_baseline, at), kl_random: randomAt(sweep, strength),
    flips_top: null, flips_baseline: null, counted: rows.length, mean_top: meanOf(rows), mean_baseline: null, of: (row) => rows[sweep.rows.indexOf(row)],
  };
}

/** Logits mean the same when a number is added to all of them; as different numbers they could not be compared. @param {Float64Array} z @param {Family} family */
function centred(z, family) {
  if (family === "bernoulli") return z;
  const mean = z.reduce((a, b) => a + b, 0) / z.length;
  return z.map((one) => one - mean);
}

/** @typedef {ReturnType<typeof createGrid>} Grid */

/**
 * Logits between the strengths that were run. What the first order leaves over, r(s) = z(s) − z − s·dz, is known at each of
 * them; it is straight between two, and next to zero, where it starts with s², a parabola. So the curve passes through
 * every run, and leaves zero as the preview does.
 * @param {Sweep} sweep with logits
 * @param {Judge} judge
 */
export function createGrid(sweep, judge) {
  const { strengths } = sweep;
  const { logits, derivative, family } = judge;
  const truth = unpack(/** @type {NonNullable<Sweep["logits"]>} */ (sweep.logits));
  const classes = logits[0].length;
  // by strength, example, class
  const left = strengths.map((strength, s) => truth.map((all, row) => {
    const moved = all.slice(s * classes, (s + 1) * classes);
    return centred(moved.map((z, c) => z - logits[row][c] - strength * derivative[row][c]), family);
  }));
  /** @type {Map<number, Response>} */
  const runs = new Map();

  /** @param {number} strength within the grid @returns {Float64Array[]} */
  function at(strength) {
    const { low, high, t } = bracket(strengths, strength);
    const [a, b] = strengths[low] === 0 ? [0, t * t] : strengths[high] === 0 ? [(1 - t) ** 2, 0] : [1 - t, t];
    return logits.map((z, row) => Float64Array.from(z, (one, c) => one + strength * derivative[row][c]
      + (low === high ? left[low][row][c] : a * left[low][row][c] + b * left[high][row][c])));
  }

  return {
    strengths,
    at,
    /** @param {number} strength @returns {Response} */
    judge(strength) {
      const response = runs.get(strength) ?? judge.judge(at(strength));
      const where = strengths.indexOf(strength);
      if (where >= 0) {
        runs.set(strength, response);
        // the run's own figures; the packed logits are rounded
        Object.assign(response, { kl_top: sweep.kl_top[where], kl_baseline: sweep.kl_baseline[where] });
      }
      return { ...response, kl_random: randomAt(sweep, strength) };
    },
  };
}

/**
 * The classes worth a line, in an order that stays while the slider moves: those that are likely before the edit or
 * become likely at one of the strengths, by their mean before it.
 * @param {number[]} before mean probabilities
 * @param {number[][]} means the same at some strengths
 * @param {number} most
 */
export function classesToShow(before, means, most) {
  const peak = before.map((p, c) => Math.max(p, ...means.map((mean) => mean[c])));
  return before
    .map((_, c) => c)
    .sort((a, b) => peak[b] - peak[a] || a - b)
    .slice(0, most)
    .sort((a, b) => before[b] - before[a] || a - b);
}
