/** Arithmetic of the big heatmap: which examples a column has, what zoom and pan make of the window, and which tiles a picture needs. */

/** @typedef {{ from: number, to: number }} Range places in the order of examples; a window's may be fractions */
/** @typedef {{ pitch: number, top: number }} Rows height of a row and what is scrolled away above, in pixels */

/** The order that depends on the component in focus, and what stands before the name of a column in the orders by one; as in heat.py. */
export const FOCUS = "component in focus";
export const COLUMN = "column: ";

/** Columns of the tile that shows everything. It comes first, so it is small; a sharper one follows where there are more pixels. */
const WHOLE = 1024;
/** Bytes of a tile: a picture in half a second through a slow proxy. */
const MOST_BYTES = 1.5e6;
/** As many columns as the kernel gives (MOST_COLUMNS in heat.py). */
const MOST_COLUMNS = 4096;
/** A tile goes so far beyond the window on both sides, in widths of the window: the next small move needs none. */
const MARGINS = [0.5, 0.15, 0];
/** The fewest examples that fill the width. */
export const LEAST = 16;
/** A row with room for its name. */
export const READABLE = 16;
/** Where all rows do not fit, they are drawn thinner first, then scrolled. */
const HEIGHT = 512;

/**
 * @param {number} column
 * @param {number} columns
 * @param {number} examples
 * @returns {[number, number]} the examples [from, to) of a drawn column
 */
export function columnRange(column, columns, examples) {
  return [Math.floor((column * examples) / columns), Math.floor(((column + 1) * examples) / columns)];
}

/**
 * The column that has an example: the inverse of columnRange.
 * @param {number} example
 * @param {number} columns
 * @param {number} examples
 */
export function columnOf(example, columns, examples) {
  return Math.floor(((example + 1) * columns - 1) / examples);
}

/**
 * The window after zooming about a place, which stays where it is on the screen.
 * @param {Range} range
 * @param {number} total
 * @param {number} place
 * @param {number} factor below 1 zooms in
 * @returns {Range}
 */
export function zoomed({ from, to }, total, place, factor) {
  const span = Math.min(total, Math.max(Math.min(LEAST, total), (to - from) * factor));
  return moved({ from: place - ((place - from) / (to - from)) * span, to: 0 }, total, 0, span);
}

/**
 * The window moved by so many examples, as far as there are any.
 * @param {Range} range
 * @param {number} total
 * @param {number} by
 * @param {number} [span]
 * @returns {Range}
 */
export function moved({ from, to }, total, by, span = to - from) {
  const start = Math.max(0, Math.min(total - span, from + by));
  return { from: start, to: start + span };
}

/**
 * Height of the picture of so many rows.
 * @param {number} rows
 */
export function heightOf(rows) {
  return Math.min(READABLE * Math.max(1, rows), HEIGHT);
}

/**
 * Rows after zooming about a height in the picture, or scrolling.
 * @param {Rows} now
 * @param {number} rows
 * @param {{ factor?: number, about?: number, by?: number }} change
 * @returns {Rows}
 */
export function rowsAfter({ pitch, top }, rows, { factor = 1, about = 0, by = 0 }) {
  const height = heightOf(rows);
  const next = Math.max(height / Math.max(1, rows), Math.min(READABLE, pitch * factor));
  const scrolled = ((top + about) / pitch) * next - about + by;
  return { pitch: next, top: Math.max(0, Math.min(rows * next - height, scrolled)) };
}

/**
 * Scrolls only as far as it takes to show a row.
 * @param {Rows} now
 * @param {number} rows
 * @param {number} row
 * @returns {Rows}
 */
export function showing({ pitch, top }, rows, row) {
  const height = heightOf(rows);
  return { pitch, top: Math.max(0, Math.min(row * pitch, Math.max((row + 1) * pitch - height, top))) };
}

/**
 * @typedef {object} Tile
 * @property {number} from
 * @property {number} to
 * @property {number} columns
 * @property {Uint8Array} bytes components x columns
 * @property {Int16Array | null} codes of the strip
 * @property {string} strip the column that `codes` speaks of
 */

/** Columns per example. @param {{ from: number, to: number, columns: number }} tile */
const density = ({ from, to, columns }) => columns / (to - from);

/** @param {number} components */
const mostColumns = (components) => Math.max(1, Math.min(MOST_COLUMNS, Math.floor(MOST_BYTES / components)));

/**
 * What to ask for first.
 * @param {number} total
 * @param {number} components
 */
export function wholeTile(total, components) {
  return { from: 0, to: total, columns: Math.min(total, WHOLE, mostColumns(components)) };
}

/**
 * The tile that would make a window sharp.
 * @param {Range} range
 * @param {number} total
 * @param {number} pixels of the screen over the width of the window
 * @param {number} components
 */
export function sharpTile({ from, to }, total, pixels, components) {
  const most = mostColumns(components);
  for (const margin of MARGINS) {
    const beyond = (to - from) * margin;
    const start = Math.max(0, Math.floor(from - beyond));
    const end = Math.min(total, Math.ceil(to + beyond));
    const columns = Math.min(end - start, Math.ceil((pixels * (end - start)) / (to - from)));
    if (columns <= most || margin === 0) return { from: start, to: end, columns: Math.min(columns, most) };
  }
  throw new Error("the last margin is 0");
}

/**
 * How many columns of a tile are drawn as one, so that there are no more than pixels: a column that is left out could be the strong one.
 * A power of two, so that a slow zoom does not make a bitmap for every frame.
 * @param {{ from: number, to: number, columns: number }} tile
 * @param {Range} range
 * @param {number} pixels
 */
export function pooling(tile, range, pixels) {
  let pool = 1;
  while ((density(tile) * (range.to - range.from)) / pool > 1.05 * pixels) pool *= 2;
  return pool;
}

/**
 * Does a tile show a window as sharply as one could ask for?
 * @param {{ from: number, to: number, columns: number }} tile
 * @param {Range} range
 * @param {number} total
 * @param {number} pixels
 * @param {number} components
 */
export function sharpEnough(tile, range, total, pixels, components) {
  if (tile.from > range.from || tile.to < range.to) return false;
  // a little less than a column a pixel is not worth a question
  return density(tile) / pooling(tile, range, pixels) >= 0.9 * density(sharpTile(range, total, pixels, components));
}

/**
 * The tiles to draw for a window, coarse ones first, so that sharper ones come to lie upon them.
 * @template {{ from: number, to: number, columns: number }} T
 * @param {T[]} tiles
 * @param {Range} range
 * @param {number} pixels
 */
export function layers(tiles, range, pixels) {
  const all = tiles.filter((tile) => tile.from < range.to && tile.to > range.from)
    .map((tile) => ({ tile, pool: pooling(tile, range, pixels) }))
    .sort((a, b) => density(a.tile) / a.pool - density(b.tile) / b.pool);
  // nothing is seen of what lies below a tile that fills the window
  const bottom = all.map(({ tile }) => tile.from <= range.from && tile.to >= range.to).lastIndexOf(true);
  return all.slice(Math.max(0, bottom));
}

/**
 * What is drawn at a place: the examples [from, to) of its columns, and which columns of the tile that are.
 * @param {{ tile: Tile, pool: number }[]} drawn as `layers` gives them
 * @param {number} place
 */
export function columnAt(drawn, place) {
  const top = drawn.filter(({ tile }) => tile.from <= place && place < tile.to).at(-1);
  if (!top) return null;
  const { tile, pool } = top;
  const size = tile.to - tile.from;
  const at = columnOf(Math.floor(place) - tile.from, tile.columns, size);
  const first = at - (at % pool);
  const last = Math.min(tile.columns, first + pool) - 1;
  return { tile, at, first, last, from: tile.from + columnRange(first, tile.columns, size)[0], to: tile.from + columnRange(last, tile.columns, size)[1] };
}

/**
 * The largest value of a component in some columns of a tile.
 * @param {Tile} tile
 * @param {number} component
 * @param {number} first
 * @param {number} last
 */
export function largestIn({ bytes, columns }, component, first, last) {
  return bytes.subarray(component * columns + first, component * columns + last + 1).reduce((a, b) => Math.max(a, b), 0);
}

/**
 * Colours of the 256 values as the bytes of an image: opaque, so that a sharp tile hides the coarse one below. Every value above 0 can be told from 0.
 * @param {[number, number, number]} colour
 * @param {[number, number, number]} ground
 */
export function palette(colour, ground) {
  const bytes = new Uint8ClampedArray(4 * 256);
  for (let value = 0; value < 256; value++) {
    const opacity = value === 0 ? 0 : 0.06 + 0.94 * (value / 255);
    bytes.set([0, 1, 2].map((i) => opacity * colour[i] + (1 - opacity) * ground[i]), 4 * value);
    bytes[4 * value + 3] = 255;
  }
  return new Uint32Array(bytes.buffer);
}

/**
 * @param {Tile} tile
 * @param {number} pool columns that become one
 * @param {number[]} components the rows, in the order they are drawn
 * @param {Uint32Array} colours
 * @param {Uint32Array} out pixels, rows x columns / pool
 */
export function paint({ bytes, columns }, pool, components, colours, out) {
  let at = 0;
  for (const component of components) {
    const end = (component + 1) * columns;
    for (let start = component * columns; start < end; start += pool) {
      let value = bytes[start];
      const stop = Math.min(end, start + pool);
      for (let i = start + 1; i < stop; i++) if (bytes[i] > value) value = bytes[i];
      out[at++] = colours[value];
    }
  }
}

/**
 * Where lines of text stand beside what they name: where it is, but not upon each other, nor beyond the ends.
 * @param {number[]} middles
 * @param {number} gap from one middle to the next
 * @param {number} height
 * @returns {number[]} middles, in the same order
 */
export function apart(middles, gap, height) {
  const order = middles.map((_, i) => i).sort((a, b) => middles[a] - middles[b]);
  const out = middles.slice();
  let least = gap / 2;
  for (const i of order) {
    out[i] = Math.max(out[i], least);
    least = out[i] + gap;
  }
  let most = height - gap / 2;
  for (const i of order.reverse()) {
    out[i] = Math.min(out[i], most);
    most = out[i] - gap;
  }
  return out;
}
