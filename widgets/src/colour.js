/** Colour arithmetic: reading CSS colours, mixing, contrast, and the palette of the strip. */

/** @typedef {[number, number, number]} Rgb */

/**
 * Okabe and Ito's palette for colour-blind readers, its black replaced by a brown that shows on dark ground too.
 * @type {readonly string[]}
 */
export const CATEGORIES = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#d9c81f", "#8a5a44"];

/**
 * Reads "#1c2330", "#fff", "rgb(1, 2, 3)" and the bare "214,96,30" of our CSS variables.
 * @param {string} text
 * @returns {Rgb | null}
 */
export function parseColour(text) {
  const value = text.trim();
  const hex = /^#([0-9a-f]{3}|[0-9a-f]{6})$/i.exec(value);
  if (hex) {
    const digits = hex[1].length === 3 ? hex[1].replace(/./g, "$&$&") : hex[1];
    /** @param {number} at */
    const pair = (at) => parseInt(digits.slice(at, at + 2), 16);
    return [pair(0), pair(2), pair(4)];
  }
  const parts = /^(?:rgba?\()?\s*(\d+)[\s,]+(\d+)[\s,]+(\d+)/.exec(value);
  return parts ? [Number(parts[1]), Number(parts[2]), Number(parts[3])] : null;
}

/**
 * A colour laid over a ground with an opacity.
 * @param {Rgb} colour
 * @param {Rgb} ground
 * @param {number} opacity
 * @returns {Rgb}
 */
export function over(colour, ground, opacity) {
  /** @param {number} i */
  const mix = (i) => Math.round(opacity * colour[i] + (1 - opacity) * ground[i]);
  return [mix(0), mix(1), mix(2)];
}

/** Relative luminance, WCAG 2. @param {Rgb} colour */
export function luminance(colour) {
  const [r, g, b] = colour.map((channel) => {
    const value = channel / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** Contrast ratio, WCAG 2: 1 to 21. @param {Rgb} a @param {Rgb} b */
export function contrast(a, b) {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}

/**
 * The text colour for a ground: the page's ink as long as it is readable, else black or white, whichever reads better.
 * @param {Rgb} ground
 * @param {Rgb} ink
 * @returns {Rgb}
 */
export function readable(ground, ink) {
  if (contrast(ground, ink) >= 4.5) return ink; // WCAG AA for normal text
  /** @type {Rgb} */ const black = [0, 0, 0];
  /** @type {Rgb} */ const white = [255, 255, 255];
  return contrast(ground, black) >= contrast(ground, white) ? black : white;
}

/** @param {Rgb} colour */
export function css(colour) {
  return `rgb(${colour.join(", ")})`;
}
