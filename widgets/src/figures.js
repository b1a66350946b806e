/** What the list, the table and the map say of one component, in words and figures. */

/** @import { ComponentSummary } from "./protocol.js" */
/** @import { SortKey } from "./listing.js" */
import { ellipsis } from "./kinds.js";
import { count, percent } from "./numbers.js";
import { visibleText } from "./tokens.js";

/** Longer names are cut where they are shown: no line shows more, and a name of a megabyte must not stall the page. */
const LONGEST = 200;

/** Text from data for one line. @param {string} text @param {number} [longest] */
export const line = (text, longest = LONGEST) => visibleText(ellipsis(text, longest));

/** Turned down, or up. @param {ComponentSummary} summary @param {0 | 1} side */
export function klRatio({ kl_ratio }, side) {
  const value = kl_ratio?.[side];
  if (value === undefined || value === null || Number.isNaN(value)) return "";
  return value >= 1000 ? ">1000" : value >= 10 ? value.toFixed(0) : value < 0.05 ? "<0.1" : value.toFixed(1);
}

/** "19 of 20". @param {number} share @param {number} of */
export const outOf = (share, of) => (of > 0 ? `${Math.round(share * of)} of ${of}` : "");

/** The figure that stands in a row when rows are in this order. @param {ComponentSummary} summary @param {SortKey} key */
export function figureOf(summary, key) {
  if (key === "purity") return summary.main_label ? outOf(summary.purity, summary.counted) : "";
  if (key === "label") return line(summary.main_label, 24);
  if (key === "fine") return summary.fine ? percent(summary.fine.share) : "";
  if (key === "errors") return summary.errors === null ? "" : percent(summary.errors);
  if (key === "examples") return count(summary.examples);
  if (key === "kl") return klRatio(summary, 0);
  if (key === "kl_up") return klRatio(summary, 1);
  return percent(summary.share, 1);
}

/** How much a component explains, of how many examples, of which class. @param {ComponentSummary} summary */
export function inFigures(summary) {
  return [
    `${percent(summary.share, 1)} of the explained energy`, `${count(summary.examples)} examples`, summary.main_label ? `${outOf(summary.purity, summary.counted)} ${line(summary.main_label)}` : "",
  ].filter(Boolean).join(" · ");
}
