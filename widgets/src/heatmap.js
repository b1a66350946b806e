/** All examples × components on a canvas: a window that can be zoomed and moved, and below it a strip coloured by a column of the examples' table. */

/** @import { Cell } from "./protocol.js" */
/** @import { Context } from "./explorer.js" */
/** @import { Range, Rows } from "./heatgrid.js" */
/** @import { Pending } from "./requests.js" */
import { CATEGORIES, css, parseColour } from "./colour.js";
import { button, h } from "./dom.js";
import { COLUMN, FOCUS, LEAST, READABLE, apart, columnAt, heightOf, largestIn, layers, moved, rowsAfter, showing, zoomed } from "./heatgrid.js";
import { hearGestures, pixelsOf } from "./heat_gestures.js";
import { OTHER, createPainter } from "./heat_paint.js";
import { createTiles } from "./heat_tiles.js";
import { coefficient, count } from "./numbers.js";
import { Cancelled } from "./requests.js";
import { onWidth } from "./resize.js";
import { absent, statusPlace } from "./status_line.js";
import { visibleText } from "./tokens.js";

/** @typedef {{ row: number, place: number }} Cursor a drawn row, and an example by its place in the order */

/** Until the page says how wide it is. */
const DEFAULT_WIDTH = 900;
/** A hover shorter than this is only passing by. */
const HOVER_MS = 120;
/** A movement has paused after this time: then a sharper picture is worth asking for. */
const PAUSE_MS = 90;
/** An answer that comes sooner needs no words about it. */
const PATIENCE_MS = 300;
/** One press of a button or key. */
const STEP = 2;
/** Rows lower than this have no room for a name each. */
const NAMED = 11;
/** Height of a name. */
const LINE = 14;
/** Characters of an example's text that are shown. */
const LONGEST = 400;
/** Answers about cells that are kept. */
const CELLS = 64;

/** @param {Context} context */
export function heatmap({ traits, view, requests, theme, scope }) {
  const overview = /** @type {NonNullable<typeof traits.overview>} */ (traits.overview);
  const { n_components: all, orders, columns } = overview;
  /** A saved page of very many examples has the coefficients of some. */
  const total = overview.sampled ?? overview.n_examples;
  const canvas = h("canvas");
  const wrapper = h("div", {
    class: "nx-heat", role: "application", tabindex: 0, "aria-roledescription": "heatmap", "aria-label": "all examples by components",
    "aria-description": "Arrow keys move, Enter picks the example and its component, plus, minus and 0 zoom, Alt with up and down makes rows taller or lower",
  }, canvas);
  const names = h("div");
  const gutter = h("div", { class: "nx-gutter", "aria-hidden": "true" }, names);
  const body = h("div", { class: "nx-heatbody" }, gutter, wrapper);
  const missing = h("div");
  const status = statusPlace();
  const readout = h("p", { class: "nx-readout", "aria-live": "polite" });
  const legend = h("p", { class: "nx-legend nx-striplegend" });
  const shown = h("span", { class: "nx-dim nx-shown" });
  const painter = createPainter(canvas);
  const tiles = createTiles(requests, total, all);

  let width = DEFAULT_WIDTH;
  /** @type {Range} */
  let range = { from: 0, to: total };
  /** @type {Rows} */
  let rows = { pitch: READABLE, top: 0 };
  /** @type {number[]} numbers of the components, in the order of the rows */
  let components = [];
  /** @type {Map<number, number>} */
  let rowOf = new Map();
  /** @type {Cursor | null} */
  let cursor = null;
  /** Places of picked examples in the order, and the order that they are places in. */
  let places = { order: "", at: /** @type {Map<number, number>} */ (new Map()) };
  /** @type {Map<string, Cell>} */
  const cells = new Map();
  /** @type {{ key: string, pending: Pending<Cell> } | null} */
  let asking = null;
  let cellTrouble = "";
  let choosing = "";
  let frame = 0;
  /** @type {Record<"pause" | "hover" | "patience", ReturnType<typeof setTimeout> | undefined>} */
  const timers = { pause: undefined, hover: undefined, patience: undefined };
  scope.add(() => {
    cancelAnimationFrame(frame);
    for (const timer of Object.values(timers)) clearTimeout(timer);
  });

  const order = () => (orders.includes(traits.get("order")) ? traits.get("order") : orders[0]);
  const strip = () => (columns.some(({ name }) => name === traits.get("strip")) ? traits.get("strip") : "");
  const hidden = () => missing.closest("[hidden]") !== null;
  const height = () => heightOf(components.length);
  const pixels = () => width * (window.devicePixelRatio || 1);
  const rowsZoomed = () => rows.pitch * components.length > height() + 0.5;

  // ---------------------------------------------------------------------------------------------------------------------- what is drawn

  /** Draws in the next frame; many reasons make one drawing. */
  function redraw() {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(draw);
  }

  function draw() {
    if (body.hidden || hidden()) return;
    const found = under();
    if (found?.key !== read) readCell(); // a sharper or a coarser tile is under the cursor now
    painter.draw({
      tiles: tiles.all, components, range, rows, total, width, height: height(), strip: strip(), faded: tiles.old, colours: theme.colours,
      chosen: rowOf.get(traits.component) ?? -1, pinned: rowOf.get(traits.get("pinned")) ?? -1,
      picked: traits.selection.flatMap((row) => places.at.get(row) ?? []),
      cursor: cursor && found && { row: cursor.row, from: found.from, to: found.to },
    });
    writeGutter();
  }

  /** What the names beside the rows were written for. */
  let written = "";
  function writeGutter() {
    const { component } = traits;
    const pinned = traits.get("pinned");
    const every = rows.pitch >= NAMED;
    const first = Math.floor(rows.top / rows.pitch);
    const last = Math.min(components.length - 1, Math.ceil((rows.top + height()) / rows.pitch) - 1);
    const named = every ? components.slice(first, last + 1)
      : [...new Set([...cursor ? [components[cursor.row]] : [], pinned, component])].filter((number) => {
        const row = rowOf.get(number) ?? -1;
        return row >= first && row <= last;
      });
    // while all have names they only slide, and are written anew when another row comes in
    names.style.transform = every ? `translateY(${-rows.top}px)` : "";
    const now = JSON.stringify([named, rows.pitch, every || rows.top, component, pinned, height(), named.map(traits.label)]);
    if (now === written) return;
    written = now;
    gutter.style.height = `${height()}px`;
    const middles = named.map((number) => ((rowOf.get(number) ?? 0) + 0.5) * rows.pitch);
    const tops = every ? middles : apart(middles.map((middle) => middle - rows.top), LINE, height());
    names.replaceChildren(...named.map((number, i) => {
      const label = h("span", { class: `${number === component ? "nx-chosen" : ""} ${number === pinned ? "nx-pinned" : ""}`, title: `${visibleText(traits.name(number))}${number === pinned ? ", pinned" : ""}` },
        h("b", {}, number), ` ${visibleText(traits.label(number))}`);
      label.style.top = `${tops[i]}px`;
      label.addEventListener("click", () => traits.update({ component: number }));
      return label;
    }));
  }

  /** The rows are others now: searched, sorted, or in the order that goes with the order of examples. */
  function arrange() {
    const searched = view.components.map(({ component }) => component);
    const place = tiles.rows && new Map(tiles.rows.map((component, i) => [component, i]));
    const next = place ? searched.sort((a, b) => (place.get(a) ?? 0) - (place.get(b) ?? 0)) : searched;
    if (next.join() !== components.join()) {
      const fitted = !rowsZoomed();
      components = next;
      rowOf = new Map(components.map((component, row) => [component, row]));
      cursor = null;
      rows = rowsAfter(fitted ? { pitch: 0.01, top: 0 } : rows, components.length, {});
      painter.forget();
    }
    body.hidden = total === 0 || components.length === 0;
    missing.replaceChildren(...(body.hidden ? [absent(total === 0 ? "There are no examples." : "No component matches the search.")] : []));
    controls();
    settle();
    redraw();
  }

  /** Everything that follows from the order, the strip and the component in focus. */
  function choose() {
    if (hidden() || total === 0) return;
    const before = tiles.choice;
    const next = { order: order(), focus: traits.component, strip: strip() };
    tiles.choose(next);
    if (before.order !== "" && before.order !== next.order) range = { from: 0, to: total };
    if (before.order !== tiles.choice.order || before.focus !== tiles.choice.focus) cursor = null;
    orderChoice.value = next.order;
    stripChoice.value = next.strip;
    writeLegend();
    wantPlaces();
    waiting();
    settle();
    controls();
    redraw();
  }

  /** Asks for a sharper picture once the movement pauses. */
  function settle() {
    clearTimeout(timers.pause);
    timers.pause = setTimeout(() => {
      if (body.hidden || hidden() || tiles.trouble || tiles.cancelled) return;
      tiles.want(range, pixels());
      waiting();
    }, PAUSE_MS);
  }

  /** Says that a picture is on its way, or why there is none. */
  function waiting() {
    clearTimeout(timers.patience);
    const what = tiles.old || tiles.all.length === 0 ? `examples by ${order()}` : "a sharper picture";
    const again = () => {
      tiles.want(range, pixels());
      waiting();
    };
    if (tiles.cancelled) status.cancelled(what, again);
    else if (tiles.trouble) status.failed(what, tiles.trouble, again);
    else if (tiles.waiting) {
      timers.patience = setTimeout(() => status.waiting(what, null, () => tiles.cancel()), PATIENCE_MS);
    } else {
      status.clear();
    }
  }

  tiles.changed.on(() => {
    arrange();
    waiting();
    writeLegend();
  });

  /** Where the picked examples stand in the order. */
  function wantPlaces() {
    const choice = tiles.choice;
    const name = `${choice.order} ${choice.focus}`;
    if (places.order !== name) places = { order: name, at: new Map() };
    const { at } = places;
    const missing = traits.selection.filter((row) => !at.has(row));
    if (missing.length === 0 || hidden()) return;
    requests.ask({ ask: "places", order: choice.order, focus: choice.focus, rows: missing }).promise.then((/** @type {number[]} */ found) => {
      missing.forEach((row, i) => at.set(row, found[i]));
      redraw();
    }, () => {}); // marks are a comfort: the picked examples themselves stand below
  }

  // ---------------------------------------------------------------------------------------------------------------------- the cell under the cursor

  /** What is drawn under the cursor. */
  function under() {
    if (!cursor || tiles.old) return null;
    const found = columnAt(layers(tiles.all, range, pixels()), cursor.place);
    const component = components[cursor.row];
    if (!found || component === undefined) return null;
    const { tile, at, first, last, from, to } = found;
    const { order, focus, strip } = tiles.choice;
    return {
      component, from, to, key: JSON.stringify([order, focus, from, to, component]),
      coefficient: (largestIn(tile, component, first, last) * (traits.summary(component)?.max_coefficient ?? 0)) / 255,
      code: tile.codes && tile.strip === strip ? tile.codes[at] : null,
    };
  }

  /** @type {string | undefined} the cell that the readout tells about */
  let read;
  function writeReadout() {
    const found = under();
    read = found?.key;
    if (!found) {
      readout.replaceChildren(h("span", { class: "nx-dim" },
        "Point at a cell or use the arrow keys; click or Enter picks example and component. Wheel, pinch, + and − zoom; drag moves."));
      return;
    }
    const cell = cells.get(found.key);
    const shared = found.to - found.from;
    const name = found.code === null ? "" : ` · ${strip()} ${found.code < 0 ? "unknown" : columns.find(({ name }) => name === strip())?.values[found.code]}`;
    const text = cell && visibleText(cell.example.text, LONGEST);
    readout.replaceChildren(
      h("b", {}, `${found.component} ${visibleText(traits.label(found.component))}`), ` · ${coefficient(cell?.coefficient ?? found.coefficient)} · `,
      h("span", { class: "nx-dim" }, cell ? `example ${cell.example.row}` : `place ${count(found.from + 1)}`,
        shared > 1 ? `, strongest of ${count(shared)} here` : "", `${name}${shared > 1 && name ? " (commonest)" : ""}`),
      " ", text === undefined ? cellTrouble || "…" : `“${text}”`,
    );
  }

  /** @param {Cursor | null} next */
  function pointAt(next) {
    const before = under()?.key;
    cursor = next && { row: Math.max(0, Math.min(components.length - 1, next.row)), place: Math.max(0, Math.min(total - 1, next.place)) };
    const found = under();
    if (before === found?.key) return;
    choosing = "";
    readCell();
    redraw();
  }

  /** Tells the value at once, and the example once the cursor stays. */
  function readCell() {
    cellTrouble = "";
    writeReadout();
    clearTimeout(timers.hover);
    timers.hover = setTimeout(wantCell, HOVER_MS);
  }

  /** Asks for the example behind the cell; a question about another cell is taken back. */
  function wantCell() {
    const found = under();
    if (!found || cells.has(found.key) || asking?.key === found.key) return;
    asking?.pending.cancel();
    const { order, focus } = tiles.choice;
    const { key, from, to, component } = found;
    const pending = requests.ask({ ask: "cell", order, focus, from, to, component });
    asking = { key, pending };
    pending.promise.then((/** @type {Cell} */ cell) => {
      asking = null;
      cells.set(key, cell);
      if (cells.size > CELLS) cells.delete([...cells.keys()][0]);
      // from here on the cursor stands on the example itself, and zooming in leads to it
      if (cursor && under()?.key === key) cursor.place = cell.at + 0.5;
      if (choosing === key) pick(cell);
      writeReadout();
    }).catch((error) => {
      if (error instanceof Cancelled) return;
      asking = null;
      cellTrouble = `the example did not come: ${error.message}`;
      writeReadout();
    });
  }

  /** @param {Cell} cell */
  function pick({ example }) {
    choosing = "";
    if (!traits.selection.includes(example.row)) traits.update({ selection: [...traits.selection, example.row] });
  }

  /** Chooses the component at once, and picks the example as soon as one knows which it is. */
  function take() {
    const found = under();
    if (!found) return;
    const cell = cells.get(found.key);
    if (cell) pick(cell);
    else {
      choosing = found.key;
      clearTimeout(timers.hover);
      wantCell();
    }
    traits.update({ component: found.component });
  }

  // ---------------------------------------------------------------------------------------------------------------------- zoom and pan

  /** @param {Range} next */
  function look(next) {
    range = next;
    settle();
    controls();
    redraw();
  }

  const middle = () => (cursor && cursor.place >= range.from && cursor.place < range.to ? cursor.place : (range.from + range.to) / 2);
  /** @param {number} factor @param {number} [place] */
  const zoom = (factor, place = middle()) => look(zoomed(range, total, place, factor));
  const reset = () => {
    rows = rowsAfter({ pitch: 0.01, top: 0 }, components.length, {});
    look({ from: 0, to: total });
  };
  /** @param {number} by pixels to the right */
  const pan = (by) => look(moved(range, total, (by * (range.to - range.from)) / width));

  /** @param {{ factor?: number, about?: number, by?: number }} change */
  function changeRows(change) {
    rows = rowsAfter(rows, components.length, change);
    // with rows to scroll, a finger moves the picture in both directions; else the page scrolls
    canvas.style.touchAction = rowsZoomed() ? "none" : "pan-y";
    controls();
    redraw();
  }

  function reveal() {
    if (!cursor) return;
    rows = showing(rows, components.length, cursor.row);
    const found = under();
    const [from, to] = found ? [found.from, found.to] : [cursor.place, cursor.place];
    if (from < range.from) look(moved(range, total, from - range.from));
    else if (to > range.to) look(moved(range, total, to - range.to));
  }

  /** @param {{ clientX: number, clientY: number }} event @returns {Cursor & { x: number, y: number, inside: boolean }} */
  function at({ clientX, clientY }) {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [clientX - box.left, clientY - box.top];
    const place = range.from + (x / (box.width || width)) * (range.to - range.from);
    return { x, y, place, row: Math.floor((y + rows.top) / rows.pitch), inside: y >= 0 && y < height() };
  }

  hearGestures(canvas, {
    point: (event) => {
      const now = event && at(event);
      pointAt(now?.inside ? now : null);
    },
    take,
    pan,
    scroll: (by) => rowsZoomed() && changeRows({ by }),
    zoom: (factor, event) => zoom(factor, at(event).place),
    grow: (factor, event) => changeRows({ factor, about: at(event).y }),
    state: () => [range.from, range.to, rows.pitch, rows.top].join(),
  });
  gutter.addEventListener("wheel", (event) => {
    if (!rowsZoomed()) return;
    event.preventDefault();
    changeRows({ by: pixelsOf(event)[1] });
  }, { passive: false });

  wrapper.addEventListener("keydown", (event) => {
    if (body.hidden || event.ctrlKey || event.metaKey || !press(event)) return;
    event.preventDefault();
    reveal();
  });
  wrapper.addEventListener("blur", () => pointAt(null));

  /** @param {KeyboardEvent} event @returns {boolean} was the key ours? */
  function press({ key, shiftKey, altKey }) {
    if (altKey && (key === "ArrowUp" || key === "ArrowDown")) {
      changeRows({ factor: key === "ArrowUp" ? 1.5 : 1 / 1.5, about: cursor ? cursor.row * rows.pitch - rows.top : height() / 2 });
      return true;
    }
    if (altKey) return false;
    /** @type {Record<string, () => void>} */
    const acts = { "+": () => zoom(1 / STEP), "=": () => zoom(1 / STEP), "-": () => zoom(STEP), 0: reset, Enter: take, " ": take, Escape: () => pointAt(null) };
    if (key in acts) {
      acts[key]();
      return true;
    }
    const start = { row: rowOf.get(traits.component) ?? Math.floor(rows.top / rows.pitch), place: range.from };
    const { row, place } = cursor ?? start;
    const found = under();
    const leap = shiftKey ? (range.to - range.from) / 20 : 0;
    const page = Math.max(1, Math.floor(height() / rows.pitch) - 1);
    /** @type {Record<string, Cursor>} */
    const moves = {
      ArrowLeft: { row, place: Math.min((found?.from ?? place) - 0.5, place - leap) }, ArrowRight: { row, place: Math.max((found?.to ?? place) + 0.5, place + leap) },
      ArrowUp: { row: row - 1, place }, ArrowDown: { row: row + 1, place }, PageUp: { row: row - page, place }, PageDown: { row: row + page, place },
      Home: { row, place: 0 }, End: { row, place: total - 1 },
    };
    if (!(key in moves)) return false;
    // the first key only shows the cursor, where the chosen component is
    pointAt(cursor ? moves[key] : start);
    return true;
  }

  // ---------------------------------------------------------------------------------------------------------------------- what stands around it

  /** @param {string} name @param {{ value: string, text: string }[]} options @param {(value: string) => void} onChange */
  function select(name, options, onChange) {
    const element = h("select", { "aria-label": name }, ...options.map(({ value, text }) => h("option", { value }, visibleText(text))));
    element.addEventListener("change", () => onChange(element.value));
    return element;
  }
  const orderChoice = select("order of the examples", orders.map((name) => ({ value: name, text: name.startsWith(COLUMN) ? name.slice(COLUMN.length) : name })),
    (value) => traits.update({ order: value }));
  const stripChoice = select("colour the strip by", [{ value: "", text: "nothing" }, ...columns.map(({ name }) => ({ value: name, text: name }))],
    (value) => traits.update({ strip: value }));
  const nearer = button("zoom in", "+", () => zoom(1 / STEP));
  const farther = button("zoom out", "−", () => zoom(STEP));
  const everything = button("show all examples and components", "All", reset);
  const taller = button("taller rows", "↕ +", () => changeRows({ factor: 1.6, about: rowInView() }));
  const lower = button("lower rows", "↕ −", () => changeRows({ factor: 1 / 1.6, about: rowInView() }));

  /** The height of the component in focus, so that it stays in view. */
  function rowInView() {
    const row = rowOf.get(traits.component);
    const y = row === undefined ? -1 : (row + 0.5) * rows.pitch - rows.top;
    return y >= 0 && y <= height() ? y : height() / 2;
  }

  function controls() {
    const whole = range.to - range.from >= total;
    // not `disabled`: whoever pressed it by keyboard would lose their place
    const idle = (/** @type {HTMLElement} */ control, /** @type {boolean} */ is) => control.setAttribute("aria-disabled", String(is));
    idle(nearer, range.to - range.from <= Math.min(total, LEAST));
    idle(farther, whole);
    idle(everything, whole && !rowsZoomed());
    const scrolls = components.length * READABLE > height() + 0.5;
    for (const control of [taller, lower]) control.hidden = !scrolls;
    idle(taller, rows.pitch >= READABLE);
    idle(lower, !rowsZoomed());
    const which = total < overview.n_examples ? `, a sample of ${count(overview.n_examples)}` : "";
    shown.textContent = (whole ? `${count(total)} examples` : `examples ${count(Math.floor(range.from) + 1)} to ${count(Math.ceil(range.to))} of ${count(total)}`) + which;
  }

  function writeLegend() {
    const values = columns.find(({ name }) => name === strip())?.values ?? [];
    const entries = values.slice(0, CATEGORIES.length).map((name, i) => swatch(name, CATEGORIES[i]));
    if (values.length > CATEGORIES.length) entries.push(swatch(`${values.length - CATEGORIES.length} other`, OTHER));
    legend.replaceChildren(
      h("span", {}, "0 "), h("span", { class: "nx-ramp", "aria-hidden": "true" }), h("span", {}, " largest coefficient of the component"),
      tiles.rows ? h("span", {}, "· rows clustered too") : "",
      h("span", { class: "nx-spring" }), h("span", {}, entries.length ? `${strip()}:` : ""), ...entries);
  }

  view.changed.on(arrange);
  theme.changed.on(() => {
    painter.forget();
    redraw();
  });
  traits.onChange(scope, ["order", "strip", "panel"], choose);
  traits.onChange(scope, ["component", "pinned", "labels"], () => {
    if (order() === FOCUS) choose();
    const row = rowOf.get(traits.component);
    if (row !== undefined && rowsZoomed() && !cursor) rows = showing(rows, components.length, row);
    redraw();
  });
  traits.onChange(scope, ["selection"], () => {
    wantPlaces();
    redraw();
  });
  onWidth(wrapper, scope, (available) => {
    width = available;
    settle();
    redraw();
  });
  arrange();
  choose();
  writeReadout();

  return h("section", { class: "nx-bottom nx-heatmap", "aria-label": "heatmap" },
    h("div", { class: "nx-head" }, h("h3", {}, "All examples × components"), shown, h("span", { class: "nx-spring" }),
      h("div", { class: "nx-heatcontrols" },
        h("label", { class: "nx-dim" }, "order ", orderChoice), columns.length ? h("label", { class: "nx-dim" }, "strip ", stripChoice) : null,
        h("span", { class: "nx-zoom", role: "group", "aria-label": "zoom" }, farther, nearer, everything, lower, taller))),
    missing, body, status.element, readout, legend);
}

/** @param {string} name @param {string} colour */
function swatch(name, colour) {
  const square = h("i", { "aria-hidden": "true" });
  square.style.background = css(/** @type {[number, number, number]} */ (parseColour(colour)));
  return h("span", { class: "nx-swatch" }, square, visibleText(name));
}
