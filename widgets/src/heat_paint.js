/** Draws a window of the heatmap: bitmaps of tiles are made once and then only scaled, so that a frame costs the same at any size of the data. */

/** @import { Rgb } from "./colour.js" */
/** @import { Range, Rows, Tile } from "./heatgrid.js" */
import { CATEGORIES, css, over, parseColour } from "./colour.js";
import { layers, paint, palette } from "./heatgrid.js";

export const STRIP_HEIGHT = 10;
const STRIP_GAP = 4;
const TRACK_GAP = 4;
const TRACK_HEIGHT = 4;
/** Of a value that has no colour of its own, and how much of it: more for what is rare than for what is unknown. */
export const OTHER = "#8b93a1";
const UNKNOWN = 0.35;
/** A picture of the order before, while the new one is on its way. */
const FADED = 0.35;
/** Rows lower than this are marked around, not upon. */
const THIN = 5;
/** Sides of the triangle above a picked example. */
const FLAG = 4;

/** @typedef {ReturnType<typeof createPainter>} Painter */
/** @typedef {{ paper: Rgb, ink: Rgb, dim: Rgb, line: Rgb, hot: Rgb, cold: Rgb }} Colours */

/**
 * @typedef {object} Picture what is drawn
 * @property {Tile[]} tiles
 * @property {number[]} components in the order of the rows
 * @property {Range} range
 * @property {number} total examples
 * @property {Rows} rows
 * @property {number} width
 * @property {number} height of the rows
 * @property {string} strip "" for none
 * @property {boolean} faded
 * @property {number} chosen row, -1 none
 * @property {number} pinned row, -1 none
 * @property {number[]} picked places of examples
 * @property {{ row: number, from: number, to: number } | null} cursor
 * @property {Colours} colours
 */

/** Height of what stands below the rows. @param {string} strip */
export const below = (strip) => (strip ? STRIP_GAP + STRIP_HEIGHT : 0) + TRACK_GAP + TRACK_HEIGHT;

/** @param {HTMLCanvasElement} canvas */
export function createPainter(canvas) {
  /** @type {WeakMap<Tile, { stamp: number, heats: Map<number, HTMLCanvasElement> }>} by how many columns are one */
  const bitmaps = new WeakMap();
  /** @type {WeakMap<Tile, { stamp: string, strip: HTMLCanvasElement }>} */
  const strips = new WeakMap();
  let looks = 0; // counts the changes of rows and colours, after which bitmaps have to be made again

  /** @param {number} width @param {number} height @param {(out: Uint32Array) => void} fill */
  function bitmap(width, height, fill) {
    const made = document.createElement("canvas");
    made.width = width;
    made.height = height;
    const pen = made.getContext("2d");
    const image = pen?.createImageData(width, height);
    if (pen && image) {
      fill(new Uint32Array(image.data.buffer));
      pen.putImageData(image, 0, 0);
    }
    return made;
  }

  /** @param {Tile} tile @param {number} pool @param {Picture} picture */
  function heatOf(tile, pool, { components, colours }) {
    let known = bitmaps.get(tile);
    if (known?.stamp !== looks) {
      known = { stamp: looks, heats: new Map() };
      bitmaps.set(tile, known);
    }
    const made = known.heats.get(pool)
      ?? bitmap(Math.ceil(tile.columns / pool), components.length, (out) => paint(tile, pool, components, palette(colours.cold, colours.paper), out));
    known.heats.set(pool, made);
    return made;
  }

  /** @param {Tile} tile @param {Picture} picture */
  function stripOf(tile, { colours }) {
    const stamp = `${tile.strip} ${colours.paper}`;
    let known = strips.get(tile);
    if (known?.stamp !== stamp) {
      const { codes } = tile;
      known = { stamp, strip: bitmap(tile.columns, 1, (out) => {
        const bytes = new Uint8ClampedArray(out.buffer);
        codes?.forEach((code, i) => bytes.set([...stripColour(code, colours.paper), 255], 4 * i));
      }) };
      strips.set(tile, known);
    }
    return known.strip;
  }

  return {
    /** Rows or colours are others now. */
    forget() {
      looks += 1;
    },
    /** @param {Picture} picture */
    draw(picture) {
      const pen = canvas.getContext("2d", { alpha: false }); // spares the browser the mixing with what lies behind
      if (!pen) return;
      const { range, rows, width, height, colours, strip, total } = picture;
      const ratio = window.devicePixelRatio || 1;
      const whole = height + below(strip);
      // setting the size empties the canvas and costs a frame: only where it is another one
      if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
      if (canvas.height !== Math.round(whole * ratio)) canvas.height = Math.round(whole * ratio);
      if (canvas.style.height !== `${whole}px`) canvas.style.height = `${whole}px`;
      const scale = width / (range.to - range.from);
      /** @param {number} place */
      const x = (place) => (place - range.from) * scale;
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.globalAlpha = 1;
      pen.fillStyle = css(colours.paper);
      pen.fillRect(0, 0, width, whole);
      if (picture.faded) pen.globalAlpha = FADED;
      // rows of less than a pixel are averaged, not dropped
      const thin = rows.pitch * ratio < 0.9;
      for (const { tile, pool } of layers(picture.tiles, range, width * ratio)) {
        const from = Math.max(tile.from, range.from);
        const to = Math.min(tile.to, range.to);
        const columns = tile.columns / (tile.to - tile.from); // per example
        const [at, size] = [(from - tile.from) * columns, (to - from) * columns];
        pen.imageSmoothingEnabled = thin;
        pen.drawImage(heatOf(tile, pool, picture), at / pool, rows.top / rows.pitch, size / pool, height / rows.pitch, x(from), 0, (to - from) * scale, height);
        if (!strip || tile.strip !== strip || !tile.codes) continue;
        pen.imageSmoothingEnabled = false;
        pen.drawImage(stripOf(tile, picture), at, 0, size, 1, x(from), height + STRIP_GAP, (to - from) * scale, STRIP_HEIGHT);
      }
      pen.globalAlpha = 1;
      track(pen, picture, whole, total);
      if (!picture.faded) marks(pen, picture, x);
    },
  };
}

/**
 * Which part of the examples, and of the rows, is in the window.
 * @param {CanvasRenderingContext2D} pen
 * @param {Picture} picture
 * @param {number} whole height of the canvas
 * @param {number} total
 */
function track(pen, { range, rows, components, width, height, colours }, whole, total) {
  if (range.to - range.from < total) {
    pen.fillStyle = css(colours.line);
    pen.fillRect(0, whole - TRACK_HEIGHT, width, TRACK_HEIGHT);
    pen.fillStyle = css(colours.dim);
    const length = Math.max(8, ((range.to - range.from) / total) * width);
    pen.fillRect((range.from / Math.max(1, total - (range.to - range.from))) * (width - length), whole - TRACK_HEIGHT, length, TRACK_HEIGHT);
  }
  const all = components.length * rows.pitch;
  if (all > height + 0.5) {
    pen.fillStyle = css(colours.line);
    pen.fillRect(width - TRACK_HEIGHT, 0, TRACK_HEIGHT, height);
    pen.fillStyle = css(colours.dim);
    pen.fillRect(width - TRACK_HEIGHT, (rows.top / all) * height, TRACK_HEIGHT, (height / all) * height);
  }
}

/**
 * The chosen and the pinned component, the picked examples, the cursor.
 * @param {CanvasRenderingContext2D} pen
 * @param {Picture} picture
 * @param {(place: number) => number} x
 */
function marks(pen, { range, rows, width, height, chosen, pinned, picked, cursor, colours, strip }, x) {
  const { pitch, top } = rows;
  /** @param {number} row */
  const y = (row) => row * pitch - top;
  /** @param {number} row */
  const seen = (row) => row >= 0 && y(row + 1) > 0 && y(row) < height;
  const aside = pitch < THIN ? 2 : 0; // the mark of a thin row would cover it
  if (seen(pinned)) {
    pen.fillStyle = css(colours.ink);
    // dots: not to be taken for the component in focus, nor by colour alone
    for (const edge of [y(pinned) - 0.5 - aside, y(pinned + 1) - 0.5 + aside]) {
      if (edge > -1 && edge < height) for (let at = 0; at < width; at += 6) pen.fillRect(at, edge, 3, 1);
    }
  }
  if (seen(chosen)) {
    pen.strokeStyle = css(colours.hot);
    pen.lineWidth = aside ? 1 : 1.5;
    const [upper, lower] = [Math.max(-2, y(chosen) - 0.25 - aside), Math.min(height, y(chosen + 1) + 0.25 + aside)];
    pen.strokeRect(0.75, upper, width - 1.5, lower - upper);
  }
  pen.fillStyle = css(colours.hot);
  for (const place of picked) {
    if (place < range.from || place >= range.to) continue;
    const middle = x(place + 0.5);
    pen.globalAlpha = 0.45;
    pen.fillRect(middle - 0.5, 0, 1, height);
    pen.globalAlpha = 1;
    pen.beginPath();
    pen.moveTo(middle - FLAG, 0);
    pen.lineTo(middle + FLAG, 0);
    pen.lineTo(middle, 1.5 * FLAG);
    pen.fill();
  }
  if (cursor && cursor.to > range.from && cursor.from < range.to) {
    const [left, right] = [x(cursor.from), x(cursor.to)];
    pen.fillStyle = css(colours.ink);
    pen.globalAlpha = 0.3;
    pen.fillRect((left + right) / 2 - 0.5, 0, 1, height + (strip ? STRIP_GAP + STRIP_HEIGHT : 0));
    pen.globalAlpha = 1;
    if (!seen(cursor.row)) return;
    pen.strokeStyle = css(colours.ink);
    pen.lineWidth = 1;
    const wide = Math.max(5, right - left);
    pen.strokeRect((left + right - wide) / 2, y(cursor.row), wide, Math.max(3, pitch));
  }
}

/**
 * Values come commonest first; the first few have a colour of their own.
 * @param {number} code
 * @param {Rgb} paper
 * @returns {Rgb}
 */
export function stripColour(code, paper) {
  /** @param {string} colour */
  const rgb = (colour) => /** @type {Rgb} */ (parseColour(colour));
  if (code < 0) return over(rgb(OTHER), paper, UNKNOWN);
  return rgb(CATEGORIES[code] ?? OTHER);
}
