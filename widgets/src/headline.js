/** A component's summary in one plain sentence. */

/** @import { ComponentSummary } from "./protocol.js" */
import { count, percent } from "./numbers.js";

/**
 * "19 of 20" where it is known over how many examples the share was counted, else a percentage.
 * @param {number} share
 * @param {number | undefined} counted
 */
function portion(share, counted) {
  return counted ? `${Math.round(share * counted)} of ${counted}` : `${percent(share)} of the`;
}

/**
 * @param {ComponentSummary} summary
 * @param {boolean | null} gold is the main label a gold label, or a prediction? null: not known yet
 */
export function headline(summary, gold) {
  const { counted, fine } = summary;
  const parts = [`${count(summary.examples)} ${summary.examples === 1 ? "example" : "examples"}`];
  if (summary.main_label) {
    const kind = gold === null ? "" : gold ? "gold " : "predicted ";
    parts.push(`${portion(summary.purity, counted)} top examples are ${kind}${summary.main_label}`);
  }
  let text = parts.join(" · ");
  if (fine) {
    const share = counted ? portion(fine.share, counted) : percent(fine.share);
    text += `; ${share} ${fine.name} in ${fine.column} (expected ${counted ? (fine.expected * counted).toFixed(1) : percent(fine.expected)})`;
  }
  return text;
}
