/** How one example's Fisher is divided among components, for the stacked bar. */

/** @import { ExampleDetail } from "./protocol.js" */

/** @typedef {{ component: number | null, share: number, value: number }} Part component null: all the smaller ones */

/**
 * The explained part is divided in proportion to the coefficients. Components overlap, so their squares do not add up to
 * the explained share; the picture says that it is a division in proportion.
 * @param {ExampleDetail} example
 * @param {number} most parts with a component of their own
 * @returns {Part[]}
 */
export function explainedParts(example, most) {
  const positive = example.coefficients.filter(({ value }) => value > 0);
  const total = positive.reduce((sum, { value }) => sum + value, 0);
  const explained = Math.min(1, Math.max(0, 1 - example.unexplained));
  if (!(total > 0)) return [];
  /** @type {Part[]} */
  const parts = positive.slice(0, most).map(({ component, value }) => ({ component, value, share: (explained * value) / total }));
  const rest = positive.slice(most).reduce((sum, { value }) => sum + value, 0);
  if (rest > 0) parts.push({ component: null, value: rest, share: (explained * rest) / total });
  return parts;
}
