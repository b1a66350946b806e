/** Geometry of the KL plot: strength to the right, KL upwards on a square-root scale. */

/** @import { Sweep } from "./protocol.js" */

/** @typedef {{ left: number, right: number, top: number, bottom: number }} Box */

/**
 * The root scale keeps a KL of 0.05 visible beside one of 3.
 * @param {Sweep} sweep
 * @param {{ low: number, high: number }} range of the slider
 * @param {Box} box
 */
export function klScales(sweep, range, box) {
  const low = Math.min(range.low, sweep.strengths[0]);
  const high = Math.max(range.high, sweep.strengths[sweep.strengths.length - 1]);
  const largest = Math.max(1e-6, ...sweep.kl_top, ...sweep.kl_baseline, ...sweep.kl_random);
  return {
    largest,
    /** @param {number} strength */
    x: (strength) => box.left + ((strength - low) / (high - low || 1)) * (box.right - box.left),
    /** @param {number} kl */
    y: (kl) => box.bottom - Math.sqrt(Math.max(0, kl) / largest) * (box.bottom - box.top),
  };
}

/**
 * @param {number[]} strengths
 * @param {number[]} values
 * @param {{ x: (strength: number) => number, y: (kl: number) => number }} scales
 */
export function curvePath(strengths, values, scales) {
  return values.map((kl, i) => `${i ? "L" : "M"}${scales.x(strengths[i]).toFixed(1)} ${scales.y(kl).toFixed(1)}`).join("");
}

const ROUND = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 8, 12, 20];

/**
 * Round KL values for the axis, from the top down, at least `gap` pixels apart; zero is always there.
 * @param {{ largest: number, y: (kl: number) => number }} scales
 * @param {number} gap
 */
export function klTicks(scales, gap) {
  const ticks = [0];
  let last = -Infinity;
  for (const value of ROUND.filter((kl) => kl <= scales.largest).reverse()) {
    const y = scales.y(value);
    if (y - last >= gap && scales.y(0) - y >= gap) {
      ticks.push(value);
      last = y;
    }
  }
  return ticks.sort((a, b) => a - b);
}
