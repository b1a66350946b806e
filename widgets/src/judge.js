/** What an edit does to predictions: from logits before and after to probabilities, KL divergence and changed predictions. */

/** @import { Preview } from "./protocol.js" */
import { unpack } from "./packed.js";

/** @typedef {ArrayLike<number>} Logits of one example, by class */
/** @typedef {Preview["family"]} Family */

/**
 * What is known of an edit at one strength. A share or a mean that is not known is null.
 * @typedef {object} Response
 * @property {number} kl_top
 * @property {number} kl_baseline
 * @property {number | null} kl_random
 * @property {number | null} flips_top share of the examples whose prediction is another one
 * @property {number | null} flips_baseline
 * @property {number} counted top examples that the mean is over
 * @property {number[] | null} mean_top probabilities, by class
 * @property {number[] | null} mean_baseline
 * @property {(row: number) => number[] | undefined} of probabilities of one example
 */

/** The last class where few of many are kept; it is no prediction. */
const REST = "anything else";

/** The likeliest class, of the first `among`. @param {ArrayLike<number>} p @param {number} [among] */
export function likeliest(p, among = p.length) {
  let best = 0;
  for (let c = 1; c < Math.min(p.length, among); c++) if (p[c] > p[best]) best = c;
  return best;
}

/**
 * How predictions are read off probabilities.
 * @param {Family} family
 * @param {string[]} classes
 */
export function reader(family, classes) {
  const single = family === "categorical" && classes[0] === "guess 1" && classes[classes.length - 1] === REST ? classes.length - 1 : Infinity;
  return {
    /** @param {number[]} p @param {number[]} q whether another prediction is made */
    differ: (p, q) => (family === "bernoulli" ? p.some((one, c) => one > 0.5 !== q[c] > 0.5) : likeliest(p, single) !== likeliest(q, single)),
    /** @param {number[]} p @returns {{ name: string, probability: number }} */
    said(p) {
      if (family === "bernoulli") {
        const names = classes.filter((_, c) => p[c] > 0.5);
        // of a set of independent labels: that all of them are as they are
        return { name: names.join(" + ") || "none", probability: p.reduce((product, one) => product * Math.max(one, 1 - one), 1) };
      }
      const best = likeliest(p, single);
      return { name: classes[best] ?? `class ${best}`, probability: p[best] };
    },
  };
}

/**
 * log p by class, without ever forming a p that could round to 0 or 1.
 * @param {Logits} z
 * @returns {number[]}
 */
export function logSoftmax(z) {
  const best = likeliest(z);
  let rest = 0;
  for (let c = 0; c < z.length; c++) if (c !== best) rest += Math.exp(z[c] - z[best]);
  const log = Math.log1p(rest);
  return Array.from(z, (one) => one - z[best] - log);
}

/** log of the sigmoid. @param {number} z */
export const logSigmoid = (z) => Math.min(z, 0) - Math.log1p(Math.exp(-Math.abs(z)));

/** @param {Logits} z @param {Family} family @returns {number[]} */
export function probabilities(z, family) {
  return family === "bernoulli" ? Array.from(z, (one) => Math.exp(logSigmoid(one))) : logSoftmax(z).map(Math.exp);
}

/**
 * KL(after ‖ before) in nats. From logarithms: a confident prediction has p = 1 to sixteen digits and still answers.
 * @param {Logits} after
 * @param {Logits} before
 * @param {Family} family independent labels add up
 */
export function kl(after, before, family) {
  let sum = 0;
  if (family === "bernoulli") {
    for (let c = 0; c < after.length; c++) {
      for (const sign of [1, -1]) {
        const log = logSigmoid(sign * after[c]);
        sum += Math.exp(log) * (log - logSigmoid(sign * before[c]));
      }
    }
  } else {
    const [p, q] = [logSoftmax(after), logSoftmax(before)];
    for (let c = 0; c < p.length; c++) sum += Math.exp(p[c]) * (p[c] - q[c]);
  }
  return Math.max(0, sum);
}

/** @param {number[]} values */
const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : NaN);

/** Mean over rows, one number a class; null without rows. @param {number[][]} rows @returns {number[] | null} */
export function meanOf(rows) {
  return rows.length ? Array.from(rows[0], (_, c) => mean(rows.map((row) => row[c]))) : null;
}

/** @typedef {ReturnType<typeof createJudge>} Judge */

/**
 * Judges edits of one component on its own examples.
 * @param {Preview} preview
 * @param {string[]} classes
 */
export function createJudge(preview, classes) {
  const { rows, n_top, n_baseline, family } = preview;
  const logits = unpack(preview.logits);
  const derivative = unpack(preview.derivative);
  const reading = reader(family, classes);
  const places = new Map(rows.map((row, at) => [row, at]));
  const before = logits.map((z) => probabilities(z, family));
  const sets = /** @type {const} */ ([[0, n_top], [n_top, n_top + n_baseline]]);

  /** @param {number[][]} after @param {readonly [number, number]} set */
  const flips = (after, [from, to]) => mean(after.slice(from, to).map((p, i) => Number(reading.differ(p, before[from + i]))));

  /**
   * @param {number[][]} after probabilities, in the order of the preview's rows
   * @param {[number, number]} kls top, baseline
   * @returns {Response}
   */
  function told(after, [kl_top, kl_baseline]) {
    const [top, baseline] = sets;
    return {
      kl_top, kl_baseline, kl_random: null, flips_top: flips(after, top), flips_baseline: n_baseline ? flips(after, baseline) : null,
      counted: n_top, mean_top: meanOf(after.slice(...top)), mean_baseline: meanOf(after.slice(...baseline)),
      of: (row) => after[places.get(row) ?? -1],
    };
  }

  /** Means over the top set and the baseline. @param {Logits[]} moved @returns {[number, number]} */
  function kls(moved) {
    const each = moved.map((z, i) => kl(z, logits[i], family));
    return [mean(each.slice(...sets[0])), mean(each.slice(...sets[1]))];
  }

  return {
    rows, n_top, n_baseline, family, classes, logits, derivative, reading, kls, told,
    /** The original model. */
    still: told(before, [0, 0]),
    /** From logits under the edit. @param {Logits[]} moved */
    judge: (moved) => told(moved.map((z) => probabilities(z, family)), kls(moved)),
  };
}

/**
 * z + Σ strength · dz, example by example: the first-order preview of several edits at once.
 * @param {Logits[]} logits
 * @param {{ derivative: Logits[], strength: number }[]} terms
 * @returns {Float64Array[]}
 */
export function stepped(logits, terms) {
  return logits.map((z, row) => {
    const moved = Float64Array.from(z);
    for (const { derivative, strength } of terms) for (let c = 0; c < moved.length; c++) moved[c] += strength * derivative[row][c];
    return moved;
  });
}
