/** How strongly a word is coloured, and how its text is shown. */

/** @import { ExampleRow } from "./protocol.js" */

/**
 * The largest share of one word over the whole list: one scale a list, so that examples can be compared. Special tokens
 * stand aside and do not count: they carry 40 to 50 % and would wash out every word.
 * @param {ExampleRow[]} rows
 */
export function largestShare(rows) {
  let largest = 0;
  for (const row of rows) for (const token of row.tokens ?? []) largest = Math.max(largest, Math.abs(token.share));
  return largest;
}

/**
 * Opacity of the colour behind a word, 0 to 1. Logarithmic, because a few words carry most of a coefficient.
 * @param {number} share signed; the sign chooses the hue elsewhere
 * @param {number} largest
 */
export function tokenOpacity(share, largest) {
  if (!(largest > 0) || share === 0) return 0;
  return 0.05 + 0.95 * Math.log10(1 + 9 * Math.min(1, Math.abs(share) / largest));
}

/** Line breaks and tabs are part of the input; they are shown instead of lost. @param {string} text */
export function visibleText(text) {
  return text.replace(/\r?\n/g, "↵").replace(/\t/g, "⇥");
}
