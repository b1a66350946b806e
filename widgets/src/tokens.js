/** How strongly a word is coloured, and how its text is shown. */

/** @import { Token } from "./protocol.js" */

/** Characters of one text that are shown; nobody reads more, and a page of a million stands still. */
export const MOST_CHARACTERS = 2000;
/** Characters of one word: what is longer is no word. */
export const MOST_OF_A_WORD = 200;
/** Words around the strongest one that are shown of a long text. */
export const AROUND = 30;

/**
 * The largest share of one word over the whole list: one scale a list, so that examples can be compared. Special tokens
 * stand aside and do not count: they carry 40 to 50 % and would wash out every word.
 * @param {{ tokens: Token[] | null }[]} rows
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

/** The word that counts most, either way; -1 without words. @param {Token[]} tokens */
export function strongest(tokens) {
  let best = -1;
  tokens.forEach((token, i) => {
    if (token.share !== 0 && (best < 0 || Math.abs(token.share) > Math.abs(tokens[best].share))) best = i;
  });
  return best;
}

/**
 * Which words of a text are shown: all, or some on both sides of one of them; a few words more are not worth cutting.
 * @param {number} words
 * @param {number} centre
 * @param {number} [around]
 * @returns {[number, number]} from, to
 */
export function part(words, centre, around = AROUND) {
  if (words <= around + 10) return [0, words];
  const from = Math.max(0, Math.min(words - around, Math.max(0, centre) - Math.floor(around / 2)));
  return [from, from + around];
}

/** Characters that nobody sees, or that move others about: controls, marks of direction, half of a pair. */
const HIDDEN = /[\p{Cs}\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/gu;

/** @param {string} character */
function named(character) {
  const code = /** @type {number} */ (character.codePointAt(0));
  if (character === "\t") return "⇥";
  if (character === "\n" || character === "\r" || code === 0x2028 || code === 0x2029) return "↵";
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  if (code === 0x7f) return "␡";
  if (code >= 0xd800 && code <= 0xdfff) return "\ufffd";
  return `‹${code.toString(16).padStart(4, "0")}›`;
}

/**
 * Line breaks, tabs and what cannot be seen are part of the input; they are shown instead of lost.
 * @param {string} text
 * @param {number} [most] characters
 */
export function visibleText(text, most = MOST_CHARACTERS) {
  const shown = text.length > most ? text.slice(0, most) : text;
  return shown.replace(/\r\n/g, "\n").replace(HIDDEN, named) + (text.length > most ? "…" : "");
}
