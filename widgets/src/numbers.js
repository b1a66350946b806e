/** Numbers as people read them. A narrow no-break space keeps "97 %" and "2 000" together. */

const THIN = "\u202f";
const MINUS = "\u2212";

/**
 * A share of one in percent; a share that would round to nothing is not called nothing.
 * @param {number} share
 * @param {number} [digits]
 */
export function percent(share, digits = 0) {
  if (!Number.isFinite(share)) return "–";
  const smallest = 10 ** -digits;
  const value = 100 * share;
  if (value !== 0 && Math.abs(value) < smallest / 2) return value > 0 ? `<${smallest}${THIN}%` : `>${MINUS}${smallest}${THIN}%`;
  return `${minus(value.toFixed(digits))}${THIN}%`;
}

/** @param {number} count a whole number, digits in groups of three */
export function count(count) {
  return minus(String(Math.round(count)).replace(/\B(?=(\d{3})+$)/g, THIN));
}

/** @param {number} value */
export function coefficient(value) {
  return minus(value.toFixed(2));
}

/** A strength with its sign; zero has none. @param {number} value @param {number} [digits] */
export function strength(value, digits = 2) {
  const text = value.toFixed(digits);
  return Number(text) === 0 ? (0).toFixed(digits) : value > 0 ? `+${text}` : minus(text);
}

/** A KL divergence in nats: small values keep their digits. @param {number} value */
export function nats(value) {
  if (!Number.isFinite(value)) return "–";
  if (Math.abs(value) < 1e-12) return "0";
  if (Math.abs(value) < 0.001) return value > 0 ? "<0.001" : `>${MINUS}0.001`;
  return minus(value.toFixed(value < 0.1 ? 3 : 2));
}

/**
 * KL on the top examples over KL on the others. Without any change on the others there is no ratio to speak of.
 * @param {number} top
 * @param {number} others
 */
export function ratio(top, others) {
  if (!(others > 1e-9) || !Number.isFinite(top)) return "–";
  const value = top / others;
  return value >= 1000 ? ">1000" : value >= 10 ? value.toFixed(0) : value.toFixed(1);
}

/**
 * How many decimals a step needs, so that the number box shows no float dust.
 * @param {number} step
 */
export function decimals(step) {
  if (!(step > 0)) return 2;
  for (let digits = 0; digits < 6; digits++) {
    if (Math.abs(step * 10 ** digits - Math.round(step * 10 ** digits)) < 1e-9) return digits;
  }
  return 6;
}

/** @param {string} text */
function minus(text) {
  return text.replace("-", MINUS);
}
