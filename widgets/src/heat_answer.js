/** Answers the heatmap's questions from arrays, for a page without a kernel. The twin of npeff_nb/widgets/heat.py, and without a DOM. */

/** @import { Cell, ExampleDetail, Heat, Overview, Request } from "./protocol.js" */
import { COLUMN, FOCUS, columnRange } from "./heatgrid.js";

/**
 * What Grid.static in heat.py writes: base64 of little-endian numbers.
 * @typedef {object} SavedHeat
 * @property {string} matrix uint8, examples x components; 255 is each component's largest coefficient
 * @property {string | null} sample int32 rows of the examples that are kept; null: all. Everything else counts within these
 * @property {Record<string, string>} orders int32 rows, of the orders that cannot be worked out from the rest; the first is the default
 * @property {Record<string, number[]>} rows order of the components that goes with an order
 * @property {Record<string, string>} codes int16, by column, by row
 */

/** @param {string} text */
function bytesOf(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i); // Uint8Array.from takes ten times as long
  return bytes.buffer;
}

/**
 * @param {SavedHeat} saved
 * @param {Overview} overview
 * @param {(row: number) => ExampleDetail | undefined} example
 */
export function createHeatAnswers(saved, overview, example) {
  const { n_components: r } = overview;
  const matrix = new Uint8Array(bytesOf(saved.matrix));
  const n = matrix.length / r;
  const sample = saved.sample ? new Int32Array(bytesOf(saved.sample)) : null;
  /** The example that stands at a place of an order. @param {number} kept */
  const rowOf = (kept) => (sample ? sample[kept] : kept);
  /** @type {Map<string, Int32Array>} */
  const orders = new Map(Object.entries(saved.orders).map(([name, text]) => [name, new Int32Array(bytesOf(text))]));
  /** @type {Map<string, Int16Array>} */
  const codes = new Map(Object.entries(saved.codes).map(([name, text]) => [name, new Int16Array(bytesOf(text))]));

  /** @param {string} name @param {number} focus @returns {Int32Array} */
  function orderOf(name, focus) {
    const known = orders.get(name);
    if (known) return known;
    if (name === FOCUS) return Int32Array.from({ length: n }, (_, row) => row).sort((a, b) => matrix[b * r + focus] - matrix[a * r + focus] || a - b);
    const values = codes.get(name.startsWith(COLUMN) ? name.slice(COLUMN.length) : "");
    const [base] = orders.values();
    if (!values) throw new Error(`there is no order “${name}” of the examples in this page`);
    const place = new Int32Array(n);
    base.forEach((row, i) => (place[row] = i));
    const made = base.slice().sort((a, b) => (values[a] & 0xffff) - (values[b] & 0xffff) || place[a] - place[b]); // -1, unknown, comes last
    orders.set(name, made);
    return made;
  }

  /** @param {{ from: number, to: number }} request */
  function check({ from, to }) {
    if (!(from >= 0 && from < to && to <= n)) throw new Error(`there are no examples from ${from} to ${to}: this page has ${n}`);
  }

  /** @param {Extract<Request, { ask: "heat" }>} request @returns {{ answer: Heat, buffers: DataView[] }} */
  function heat({ order: name, focus, strip, from, to, columns }) {
    check({ from, to });
    const order = orderOf(name, focus);
    const bytes = new Uint8Array(r * columns);
    const values = codes.get(strip);
    const common = values && new Int16Array(columns);
    for (let column = 0; column < columns; column++) {
      const [start, end] = columnRange(column, columns, to - from);
      for (let i = from + start; i < from + end; i++) {
        const row = order[i] * r;
        for (let k = 0; k < r; k++) if (matrix[row + k] > bytes[k * columns + column]) bytes[k * columns + column] = matrix[row + k];
      }
      if (common) common[column] = commonest(order.subarray(from + start, from + end), values);
    }
    const buffers = [new DataView(bytes.buffer)];
    if (common) buffers.push(new DataView(common.buffer));
    return { answer: { order: name, from, to, columns, rows: saved.rows[name] ?? null }, buffers };
  }

  /** @param {Extract<Request, { ask: "cell" }>} request @returns {Cell} */
  function cell({ order: name, focus, from, to, component }) {
    check({ from, to });
    const order = orderOf(name, focus);
    let at = from;
    for (let i = from + 1; i < to; i++) if (matrix[order[i] * r + component] > matrix[order[at] * r + component]) at = i;
    const detail = example(rowOf(order[at]));
    if (!detail) throw new Error(`this page was saved without example ${rowOf(order[at])}; run the notebook to see it.`);
    const exact = detail.coefficients.find((entry) => entry.component === component);
    const rounded = (matrix[order[at] * r + component] * overview.components[component].max_coefficient) / 255;
    return { component, coefficient: exact?.value ?? rounded, at, example: detail };
  }

  /** @param {Extract<Request, { ask: "places" }>} request */
  function places({ order: name, focus, rows }) {
    const order = orderOf(name, focus);
    return rows.map((row) => order.indexOf(sample ? sample.indexOf(row) : row)).filter((place) => place >= 0);
  }

  /**
   * @param {Request} request
   * @returns {{ answer: any, buffers: DataView[] } | null} null for what is none of the heatmap's questions
   */
  return (request) => {
    if (request.ask === "heat") return heat(request);
    if (request.ask === "cell") return { answer: cell(request), buffers: [] };
    if (request.ask === "places") return { answer: places(request), buffers: [] };
    return null;
  };
}

/**
 * The commonest code; among equals the smallest, which is commoner everywhere, and a known one before -1.
 * @param {Int32Array} rows
 * @param {Int16Array} codes
 */
function commonest(rows, codes) {
  /** @type {Map<number, number>} */
  const counts = new Map();
  for (const row of rows) counts.set(codes[row] & 0xffff, (counts.get(codes[row] & 0xffff) ?? 0) + 1);
  let best = 0xffff;
  for (const [code, count] of counts) {
    const most = counts.get(best) ?? 0;
    if (count > most || (count === most && code < best)) best = code;
  }
  return best === 0xffff ? -1 : best;
}
