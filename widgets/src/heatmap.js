/** All examples × components on a canvas, with a colour strip of one table column underneath. */

/** @import { Context } from "./explorer.js" */
import { CATEGORIES, parseColour, stripColours } from "./colour.js";
import { h } from "./dom.js";
import { aggregate, cellAt, columnRange, peak, rowHeight, stripCodes } from "./heatgrid.js";
import { coefficient, count } from "./numbers.js";
import { onWidth } from "./resize.js";
import { absent } from "./status_line.js";
import { visibleText } from "./tokens.js";

/** @typedef {{ row: number, column: number }} Cell in drawn rows and columns */

const STRIP_HEIGHT = 10;
const STRIP_GAP = 4;
const DEFAULT_WIDTH = 900;
/** A hover shorter than this is only passing by. */
const HOVER_MS = 120;
const OTHER = "#8b93a1";

/** @param {Context} context */
export function heatmap({ traits, view, examples, theme, scope }) {
  const overview = /** @type {NonNullable<typeof traits.overview>} */ (traits.overview);
  const canvas = h("canvas");
  const wrapper = h("div", {
    class: "nx-heat", role: "application", tabindex: 0, "aria-label": "all examples by components", "aria-roledescription": "heatmap",
  }, canvas);
  const gutter = h("div", { class: "nx-gutter", "aria-hidden": "true" });
  const missing = h("div");
  const body = h("div", { class: "nx-heatbody" }, gutter, wrapper);
  const readout = h("p", { class: "nx-readout", "aria-live": "polite" });
  const colours = stripColours(overview.strip.names, overview.strip.codes);
  const rowOf = new Map(overview.components.map(({ component }, row) => [component, row]));
  const total = overview.order.length;
  /** A table without labels has no strip. */
  const stripHeight = overview.strip.names.length ? STRIP_GAP + STRIP_HEIGHT : 0;

  let width = DEFAULT_WIDTH;
  let height = 0;
  let columns = 0;
  /** @type {HTMLCanvasElement | null} the heat alone, one pixel a cell */
  let bitmap = null;
  /** @type {number[]} */
  let strip = [];
  /** @type {Cell | null} */
  let cursor = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  scope.add(() => clearTimeout(timer));

  /** @param {HTMLCanvasElement} target */
  const context2d = (target) => target.getContext("2d");

  /** Redraws the heat itself; marks are put on top by `mark`. */
  function draw() {
    const heat = traits.heat;
    const rows = view.components.length;
    body.hidden = !heat || rows === 0;
    missing.replaceChildren(...(body.hidden ? [absent(rows === 0 ? "No component matches the search." : "The coefficients of the examples are not here yet.")] : []));
    legend.hidden = body.hidden;
    if (!heat || rows === 0) return;
    const ratio = window.devicePixelRatio || 1;
    const pitch = rowHeight(rows);
    height = Math.round(rows * pitch);
    columns = Math.max(1, Math.min(total, Math.floor(width * ratio)));
    strip = stripHeight ? stripCodes(overview.strip.codes, columns) : [];
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round((height + stripHeight) * ratio);
    canvas.style.height = `${height + stripHeight}px`;
    const values = aggregate(heat, total, view.components.map(({ component }) => rowOf.get(component) ?? 0), columns);
    bitmap = document.createElement("canvas");
    bitmap.width = columns;
    bitmap.height = rows;
    const pen = context2d(bitmap);
    if (pen) {
      const image = pen.createImageData(columns, rows);
      const [r, g, b] = theme.colours.cold;
      values.forEach((value, i) => image.data.set([r, g, b, value === 0 ? 0 : 24 + Math.round(231 * (value / 255))], 4 * i));
      pen.putImageData(image, 0, 0);
    }
    writeGutter(pitch);
    mark();
  }

  /** @param {number} pitch */
  function writeGutter(pitch) {
    gutter.style.height = `${height}px`;
    const chosen = traits.component;
    gutter.replaceChildren(...view.components.map(({ component }, row) => {
      const label = h("span", { class: component === chosen ? "nx-chosen" : "" }, component === chosen ? `${component} ${traits.label(component)}` : component);
      // half a line of text fits above and below the middle, also at the first and the last row
      label.style.top = `${Math.max(7, Math.min(height - 7, (row + 0.5) * pitch))}px`;
      return { component, label };
    }).filter(({ component }) => component === chosen || pitch >= 12).map(({ label }) => label));
  }

  /** The bitmap, the strip, and on top of them the chosen component, the picked examples and the cursor. */
  function mark() {
    const pen = context2d(canvas);
    if (!pen || !bitmap || body.hidden) return;
    const ratio = window.devicePixelRatio || 1;
    const rows = view.components.length;
    const pitch = height / rows;
    const { hot, ink } = theme.colours;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height + stripHeight);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(bitmap, 0, 0, width, height);
    strip.forEach((code, c) => {
      const colour = code >= 0 ? colours[code] : -1;
      pen.fillStyle = colour >= 0 ? CATEGORIES[colour] : OTHER;
      pen.globalAlpha = code >= 0 ? 1 : 0.35;
      const x = (c * width) / columns;
      pen.fillRect(x, height + STRIP_GAP, width / columns + 0.5, STRIP_HEIGHT);
    });
    pen.globalAlpha = 1;
    const chosen = view.components.findIndex(({ component }) => component === traits.component);
    if (chosen >= 0) {
      pen.strokeStyle = `rgb(${hot})`;
      pen.lineWidth = 1.5;
      pen.strokeRect(0.75, chosen * pitch - 0.25, width - 1.5, pitch + 0.5);
    }
    const picked = new Set(traits.selection);
    if (picked.size) {
      pen.fillStyle = `rgb(${hot})`;
      overview.order.forEach((row, i) => {
        if (!picked.has(row)) return;
        const x = ((i + 0.5) * width) / total;
        pen.globalAlpha = 0.45;
        pen.fillRect(x - 0.5, 0, 1, height);
        pen.globalAlpha = 1;
        pen.beginPath();
        pen.moveTo(x - 4, 0);
        pen.lineTo(x + 4, 0);
        pen.lineTo(x, 6);
        pen.fill();
      });
    }
    if (cursor) {
      pen.fillStyle = `rgb(${ink})`;
      pen.globalAlpha = 0.3;
      pen.fillRect(((cursor.column + 0.5) * width) / columns - 0.5, 0, 1, height + stripHeight);
      pen.globalAlpha = 1;
      pen.strokeStyle = `rgb(${ink})`;
      pen.lineWidth = 1;
      pen.strokeRect((cursor.column * width) / columns - 2, cursor.row * pitch, width / columns + 4, pitch);
    }
  }

  /** The component and the example under a cell. @param {Cell} cell */
  function under(cell) {
    const heat = traits.heat;
    const summary = view.components[cell.row];
    if (!heat || !summary) return null;
    const row = rowOf.get(summary.component) ?? 0;
    const [from, to] = columnRange(cell.column, columns, total);
    const at = peak(heat, total, row, from, to);
    return { component: summary.component, example: overview.order[at], code: overview.strip.codes[at], coefficient: (heat[row * total + at] * summary.max_coefficient) / 255, shared: to - from };
  }

  function writeReadout() {
    const found = cursor && under(cursor);
    if (!found) {
      readout.replaceChildren(h("span", { class: "nx-dim" }, "Hover, or use the arrow keys, to read a cell; click or Enter picks the example and its component."));
      return;
    }
    const detail = examples.get(found.example);
    const strong = found.shared > 1 ? `, strongest of ${found.shared} here` : "";
    const name = overview.strip.names[found.code];
    readout.replaceChildren(
      h("b", {}, `${found.component} ${traits.label(found.component)}`), ` · ${coefficient(found.coefficient)} · `,
      h("span", { class: "nx-dim" }, `example ${found.example}${strong}${name === undefined ? "" : ` · ${overview.strip.column} ${name}`}`),
      " ", detail ? `“${visibleText(detail.text)}”` : (examples.trouble(found.example) ?? "…"),
    );
  }

  /** @param {Cell | null} cell */
  function pointAt(cell) {
    if (cell?.row === cursor?.row && cell?.column === cursor?.column) return;
    cursor = cell;
    mark();
    writeReadout();
    clearTimeout(timer);
    if (cell) timer = setTimeout(() => {
      const found = cursor && under(cursor);
      if (found) examples.want([found.example]);
    }, HOVER_MS);
  }

  function choose() {
    const found = cursor && under(cursor);
    if (!found) return;
    const selection = traits.selection;
    traits.update({
      component: found.component,
      selection: selection.includes(found.example) ? selection : [...selection, found.example],
    });
  }

  /** @param {MouseEvent} event @returns {Cell | null} */
  function cellOf(event) {
    const box = canvas.getBoundingClientRect();
    const rows = view.components.length;
    if (!bitmap || rows === 0) return null;
    const y = event.clientY - box.top;
    if (y > height + stripHeight) return null;
    return { row: cellAt(y, height, rows), column: cellAt(event.clientX - box.left, box.width || width, columns) };
  }

  canvas.addEventListener("mousemove", (event) => pointAt(cellOf(event)));
  canvas.addEventListener("mouseleave", () => pointAt(null));
  canvas.addEventListener("click", (event) => {
    pointAt(cellOf(event));
    choose();
  });
  wrapper.addEventListener("keydown", (event) => {
    const rows = view.components.length;
    if (!bitmap || rows === 0) return;
    const start = { row: Math.max(0, view.components.findIndex(({ component }) => component === traits.component)), column: 0 };
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose();
      return;
    }
    const at = cursor ?? start;
    const leap = event.shiftKey ? Math.max(1, Math.round(columns / 20)) : 1;
    /** @type {Record<string, Cell>} */
    const moves = {
      ArrowLeft: { ...at, column: at.column - leap }, ArrowRight: { ...at, column: at.column + leap },
      ArrowUp: { ...at, row: at.row - 1 }, ArrowDown: { ...at, row: at.row + 1 },
      Home: { ...at, column: 0 }, End: { ...at, column: columns - 1 },
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    // the first key only shows the cursor, where the chosen component is
    const { row, column } = cursor ? moves[event.key] : start;
    pointAt({ row: Math.max(0, Math.min(rows - 1, row)), column: Math.max(0, Math.min(columns - 1, column)) });
  });
  wrapper.addEventListener("blur", () => pointAt(null));

  const entries = overview.strip.names
    .map((name, code) => ({ name, colour: colours[code] }))
    .filter(({ colour }) => colour >= 0)
    .map(({ name, colour }) => swatch(name, CATEGORIES[colour]));
  if (colours.some((colour) => colour < 0)) entries.push(swatch(`${colours.filter((colour) => colour < 0).length} other`, OTHER));
  const legend = h("p", { class: "nx-legend nx-striplegend" },
    h("span", {}, "0 "), h("span", { class: "nx-ramp", "aria-hidden": "true" }), h("span", {}, " largest coefficient of the component"),
    h("span", { class: "nx-spring" }), h("span", {}, stripHeight ? `${overview.strip.column}:` : ""), ...entries);

  view.changed.on(() => {
    cursor = null;
    draw();
    writeReadout();
  });
  theme.changed.on(draw);
  examples.changed.on(writeReadout);
  traits.onChange(scope, ["heat", "component"], draw);
  traits.onChange(scope, ["selection"], mark);
  onWidth(wrapper, scope, (available) => {
    width = available;
    draw();
  });
  draw();
  writeReadout();

  return h("section", { class: "nx-bottom", "aria-label": "heatmap" },
    h("div", { class: "nx-head" }, h("h3", {}, "All examples × components"), h("span", { class: "nx-dim" }, `${count(total)} examples`)),
    missing, body, readout, legend);
}

/** @param {string} name @param {string} colour */
function swatch(name, colour) {
  const square = h("i", { "aria-hidden": "true" });
  square.style.background = `rgb(${parseColour(colour)})`;
  return h("span", { class: "nx-swatch" }, square, name);
}
