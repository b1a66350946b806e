/** A small histogram as one SVG path. Counts are drawn on a log scale: most examples sit in the first bins. */

import { svg } from "./dom.js";

const WIDTH = 62;
const HEIGHT = 16;

/** @param {number[]} counts */
export function smallHistogram(counts) {
  return svg("svg", { class: "nx-histogram", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, svg("path", { d: histogramPath(counts, WIDTH, HEIGHT) }));
}

/**
 * @param {number[]} counts
 * @param {number} width
 * @param {number} height
 */
export function histogramPath(counts, width, height) {
  const largest = Math.log1p(Math.max(0, ...counts));
  if (!(largest > 0)) return "";
  const step = width / counts.length;
  return counts
    .map((value, i) => {
      if (!(value > 0)) return "";
      // an occupied bin is never invisible
      const bar = Math.max(1, (height * Math.log1p(value)) / largest);
      return `M${(i * step).toFixed(2)} ${height}v${(-bar).toFixed(2)}h${(0.78 * step).toFixed(2)}v${bar.toFixed(2)}z`;
    })
    .join("");
}
