/**
 * Where a strength stands on the slider, from -1 to 1. Logarithmic away from zero: a preview holds up to about 0.05, most
 * components act between 0.1 and 0.4, and beyond that the whole model gives way; on a straight scale the first would be
 * five pixels wide. Near zero the scale is straight, so that zero is on it.
 */

import { decimals, strength as signed } from "./numbers.js";

/** The strength at which the scale bends: straight below, logarithmic above. */
const BEND = 0.05;
/** Thumbs this close to the middle mean zero. */
const CATCH = 0.02;

/** @typedef {{ low: number, high: number, step: number }} Range of strengths */

/** @param {Range} range */
function reach(range) {
  return Math.log1p(Math.max(Math.abs(range.low), Math.abs(range.high)) / BEND);
}

/** @param {number} strength @param {Range} range */
export function toPlace(strength, range) {
  return (Math.sign(strength) * Math.log1p(Math.abs(strength) / BEND)) / reach(range);
}

/** @param {number} place @param {Range} range a strength with no more digits than it deserves */
export function toStrength(place, range) {
  if (Math.abs(place) < CATCH) return 0;
  const strength = Math.sign(place) * BEND * Math.expm1(Math.abs(place) * reach(range));
  return rounded(Math.max(range.low, Math.min(range.high, strength)), range);
}

/** Tenths of a step below ten steps. @param {number} strength @param {Range} range */
export function rounded(strength, { step }) {
  const unit = Math.abs(strength) < 9.95 * step ? step / 10 : step;
  return Number((Math.round(strength / unit) * unit).toFixed(9)) || 0;
}

/** As people read it: with a third decimal only where it has one. @param {number} strength @param {Range} range */
export function written(strength, { step }) {
  const digits = decimals(step);
  const finer = Math.abs(strength * 10 ** digits - Math.round(strength * 10 ** digits)) > 1e-6;
  return signed(strength, digits + Number(finer));
}

/** Where the keys go that make big steps: round numbers, and those at which the model is run. */
const STOPS = [0, 0.05, 0.15, 0.3, 0.6, 1];

/**
 * Where a key leads to; null for keys that do not move a slider.
 * @param {string} key
 * @param {number} strength
 * @param {Range} range
 */
export function keyed(key, strength, range) {
  const { low, high, step } = range;
  const way = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[key];
  const stops = [...STOPS.map((stop) => -stop), ...STOPS, low, high].filter((stop) => stop >= low && stop <= high).sort((a, b) => a - b);
  const next = way ? strength + way * step
    : key === "Home" ? low
      : key === "End" ? high
        : key === "PageUp" ? (stops.find((stop) => stop > strength + 1e-9) ?? high)
          : key === "PageDown" ? (stops.filter((stop) => stop < strength - 1e-9).at(-1) ?? low)
            : null;
  return next === null ? null : rounded(Math.max(low, Math.min(high, next)), range);
}
