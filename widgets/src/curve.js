/** Geometry of the KL plot: strength to the right on the slider's scale, KL upwards on a square-root scale. */

/** @import { Range } from "./slide.js" */
import { toPlace } from "./slide.js";

/** @typedef {{ left: number, right: number, top: number, bottom: number }} Box */

/**
 * The root scale keeps a KL of 0.05 visible beside one of 3.
 * @param {number[]} values every KL that is drawn
 * @param {Range} range of the slider
 * @param {Box} box
 */
export function klScales(values, range, box) {
  const [low, high] = [toPlace(range.low, range), toPlace(range.high, range)];
  const largest = values.reduce((a, b) => Math.max(a, b), 1e-6);
  return {
    largest,
    /** @param {number} strength */
    x: (strength) => box.left + ((toPlace(strength, range) - low) / (high - low || 1)) * (box.right - box.left),
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

/** In the order in which they are given room. */
const STOPS = [0, 0.3, -0.3, 0.1, -0.1, 0.05, -0.05, 0.6, -0.6, 0.02, -0.02];

/**
 * Strengths for the axis, at least `gap` pixels apart; the ends and zero come first.
 * @param {{ x: (strength: number) => number }} scales
 * @param {Range} range
 * @param {number} gap
 */
export function strengthTicks(scales, { low, high }, gap) {
  /** @type {number[]} */
  const ticks = [];
  for (const stop of [low, high, ...STOPS]) {
    if (stop >= low && stop <= high && ticks.every((other) => Math.abs(scales.x(other) - scales.x(stop)) >= gap)) ticks.push(stop);
  }
  return ticks.sort((a, b) => a - b);
}
