// The heatmap: arithmetic against obvious twins, answers of a static page, and the panel under jsdom with a fake model.
import assert from "node:assert/strict";
import { afterEach, test } from "node:test";
import { createHeatAnswers } from "../src/heat_answer.js";
import {
  FOCUS, apart, columnAt, columnOf, columnRange, heightOf, largestIn, layers, moved, paint, palette, pooling, rowsAfter, sharpEnough, sharpTile, showing, wholeTile, zoomed,
} from "../src/heatgrid.js";
import { createRequests } from "../src/requests.js";
import { createScope } from "../src/scope.js";
import { createTheme } from "../src/theme.js";
import { createTraits } from "../src/traits.js";
import { createView } from "../src/view.js";
import { fakeModel, openPage, settle } from "./page.js";

/** Small numbers at random, the same every time. */
function dice(seed) {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 4294967296) * below);
  };
}

// ---------------------------------------------------------------------------------------------------------------------------- arithmetic

test("columns have every example once, and columnOf finds the column of each", () => {
  for (const [examples, columns] of [[7, 3], [10, 10], [100, 7], [5, 1], [1000, 999]]) {
    let next = 0;
    for (let column = 0; column < columns; column++) {
      const [from, to] = columnRange(column, columns, examples);
      assert.equal(from, next);
      assert.ok(to > from);
      for (let i = from; i < to; i++) assert.equal(columnOf(i, columns, examples), column);
      next = to;
    }
    assert.equal(next, examples);
  }
});

test("zooming keeps the place under the pointer, and ends at everything and at a few examples", () => {
  let range = { from: 0, to: 1000 };
  const share = (place) => (place - range.from) / (range.to - range.from);
  const before = share(300);
  range = zoomed(range, 1000, 300, 0.1);
  assert.ok(Math.abs(share(300) - before) < 1e-9);
  assert.ok(Math.abs(range.to - range.from - 100) < 1e-9);
  range = zoomed(range, 1000, 300, 1e-9);
  assert.ok(Math.abs(range.to - range.from - 16) < 1e-9);
  assert.deepEqual(zoomed(range, 1000, 300, 1e9), { from: 0, to: 1000 });
  assert.deepEqual(zoomed({ from: 0, to: 5 }, 5, 2, 0.1), { from: 0, to: 5 }); // so few examples are never zoomed
});

test("moving stops at both ends", () => {
  assert.deepEqual(moved({ from: 10, to: 30 }, 100, -50), { from: 0, to: 20 });
  assert.deepEqual(moved({ from: 10, to: 30 }, 100, 500), { from: 80, to: 100 });
  assert.deepEqual(moved({ from: 10, to: 30 }, 100, 5), { from: 15, to: 35 });
});

test("rows fit, grow about a height, scroll, and show a row", () => {
  assert.equal(heightOf(4), 64);
  assert.equal(heightOf(512), 512);
  const fitted = rowsAfter({ pitch: 0.01, top: 0 }, 512, {});
  assert.deepEqual(fitted, { pitch: 1, top: 0 });
  const grown = rowsAfter(fitted, 512, { factor: 4, about: 100 });
  assert.deepEqual(grown, { pitch: 4, top: 300 }); // row 100 is still at height 100
  assert.equal(rowsAfter(grown, 512, { by: 1e6 }).top, 512 * 4 - 512);
  assert.equal(rowsAfter(grown, 512, { factor: 100 }).pitch, 16);
  assert.deepEqual(showing(grown, 512, 0), { pitch: 4, top: 0 });
  assert.deepEqual(showing(grown, 512, 511), { pitch: 4, top: 4 * 512 - 512 });
  assert.deepEqual(showing(grown, 512, 100), grown);
});

test("names beside thin rows do not lie upon each other", () => {
  assert.deepEqual(apart([100, 101, 300], 14, 512), [100, 114, 300]);
  assert.deepEqual(apart([2, 511, 510], 14, 512), [7, 505, 491]);
  assert.deepEqual(apart([], 14, 512), []);
});

test("a tile of everything comes first, and a sharper one is asked for only where it shows more", () => {
  assert.deepEqual(wholeTile(100_000, 512), { from: 0, to: 100_000, columns: 1024 });
  assert.deepEqual(wholeTile(40, 6), { from: 0, to: 40, columns: 40 });
  const whole = wholeTile(100_000, 512);
  assert.equal(sharpEnough(whole, { from: 0, to: 100_000 }, 100_000, 1000, 512), true);
  const range = { from: 40_000.5, to: 42_000.25 };
  assert.equal(sharpEnough(whole, range, 100_000, 1000, 512), false);
  const sharp = sharpTile(range, 100_000, 1000, 512);
  assert.ok(sharp.from < range.from - 900 && sharp.to > range.to + 900, "there is a margin for the next move");
  assert.equal(sharpEnough(sharp, range, 100_000, 1000, 512), true);
  assert.equal(sharpEnough(sharp, { from: 40_100, to: 42_100 }, 100_000, 1000, 512), true);
  assert.equal(sharpEnough(sharp, { from: 50_000, to: 52_000 }, 100_000, 1000, 512), false);
});

test("whatever is asked for is enough, whole examples are the limit, and no tile is too large", () => {
  const random = dice(1);
  for (let round = 0; round < 3000; round++) {
    const total = 1 + random(round % 3 ? 200_000 : 50);
    const components = 1 + random(3000);
    const pixels = 50 + random(4000);
    const span = Math.min(total, 16 + random(total));
    const from = random(total - span + 1);
    const range = { from, to: from + span };
    const tile = sharpTile(range, total, pixels, components);
    assert.ok(tile.from >= 0 && tile.to <= total && tile.from <= range.from && tile.to >= range.to);
    assert.ok(tile.columns >= 1 && tile.columns <= tile.to - tile.from && tile.columns <= 4096 && tile.columns * components <= 1.5e6);
    assert.ok(sharpEnough(tile, range, total, pixels, components), JSON.stringify([range, total, pixels, components, tile]));
  }
});

test("coarse tiles lie below sharp ones, and there are never more columns than pixels", () => {
  const whole = { from: 0, to: 1000, columns: 100 };
  const sharp = { from: 100, to: 300, columns: 200 };
  const other = { from: 800, to: 900, columns: 100 };
  assert.deepEqual(layers([sharp, whole, other], { from: 0, to: 400 }, 400).map(({ tile }) => tile), [whole, sharp]);
  assert.deepEqual(layers([sharp, whole, other], { from: 120, to: 280 }, 400).map(({ tile }) => tile), [sharp], "it fills the window");
  assert.equal(pooling(sharp, { from: 0, to: 1000 }, 1000), 1);
  assert.equal(pooling(sharp, { from: 0, to: 1000 }, 300), 4);
  assert.equal(pooling(whole, { from: 0, to: 1000 }, 98), 1);
});

test("a place reads the column on top, also where several are drawn as one", () => {
  const bytes = Uint8Array.from({ length: 20 }, (_, i) => i);
  const whole = { from: 0, to: 100, columns: 10, bytes, codes: null, strip: "" };
  const sharp = { from: 20, to: 30, columns: 10, bytes, codes: null, strip: "" };
  const one = columnAt([{ tile: whole, pool: 1 }, { tile: sharp, pool: 1 }], 25.7);
  assert.deepEqual([one.tile, one.from, one.to], [sharp, 25, 26]);
  const pooled = columnAt([{ tile: whole, pool: 4 }], 95);
  assert.deepEqual([pooled.first, pooled.last, pooled.from, pooled.to], [8, 9, 80, 100]);
  assert.equal(largestIn(whole, 1, pooled.first, pooled.last), 19);
  assert.equal(columnAt([{ tile: sharp, pool: 1 }], 5), null);
});

test("colours: nothing is the ground, the largest is the colour, and the smallest can be told from nothing", () => {
  const colours = new Uint8Array(palette([0, 0, 100], [255, 255, 255]).buffer);
  const at = (value) => [...colours.subarray(4 * value, 4 * value + 4)];
  assert.deepEqual(at(0), [255, 255, 255, 255]);
  assert.deepEqual(at(255), [0, 0, 100, 255]);
  assert.ok(at(1)[0] <= 240);
  for (let value = 1; value < 256; value++) assert.ok(at(value)[0] <= at(value - 1)[0]);
});

test("painting puts rows in the asked order and keeps the largest of pooled columns", () => {
  const tile = { bytes: Uint8Array.from([1, 2, 3, 4, 5, 9, 8, 7, 6, 0]), columns: 5 };
  const same = Uint32Array.from({ length: 256 }, (_, value) => value);
  const out = new Uint32Array(6);
  paint(tile, 2, [1, 0], same, out);
  assert.deepEqual([...out], [9, 7, 0, 2, 4, 5]);
});

// ---------------------------------------------------------------------------------------------------------------------------- a static page

const N = 40;
const R = 6;

/** Coefficients at random, and what a page keeps of them. */
function small() {
  const random = dice(5);
  const matrix = Array.from({ length: N }, () => Array.from({ length: R }, () => (random(3) ? 0 : 1 + random(255))));
  const codes = Array.from({ length: N }, () => random(4) - 1);
  const order = Array.from({ length: N }, (_, i) => (i * 7) % N);
  const base64 = (values) => Buffer.from(values.buffer).toString("base64");
  const saved = {
    matrix: base64(Uint8Array.from(matrix.flat())), rows: { clustered: [5, 4, 3, 2, 1, 0] }, codes: { label: base64(Int16Array.from(codes)) },
    orders: { "strongest component": base64(Int32Array.from(order)), clustered: base64(Int32Array.from(order.toReversed())) },
  };
  const overview = {
    title: "", subtitle: "", live: true, classes: [], n_examples: N, n_components: R, orders: ["strongest component", "clustered", FOCUS, "column: label"],
    columns: [{ name: "label", values: ["yes", "no", "<b>perhaps</b>"] }], strengths: {}, places: null,
    components: Array.from({ length: R }, (_, component) => ({
      component, label: `label ${component}`, share: (R - component) / 10, examples: 1, histogram: [], max_coefficient: 0.5, main_label: "", purity: 1, counted: 1, errors: null, kl_ratio: null, fine: null,
    })),
  };
  const examples = Array.from({ length: N }, (_, row) => ({
    row, text: `text of ${row}`, gold: null, prediction: "", probability: 0, unexplained: 0.5, coefficients: row % 2 ? [] : matrix[row].map((value, component) => ({ component, value: value / 512 })),
  }));
  return { matrix, codes, order, saved, overview, examples };
}

test("a page without a kernel answers tiles as a twin does, one example at a time", () => {
  const { matrix, codes, order, saved, overview, examples } = small();
  const answers = createHeatAnswers(saved, overview, (row) => examples[row]);
  const place = (row) => order.indexOf(row);
  const rowsBy = {
    "strongest component": order, clustered: order.toReversed(),
    [FOCUS]: order.toSorted((a, b) => matrix[b][2] - matrix[a][2] || a - b),
    "column: label": order.toSorted((a, b) => (codes[a] < 0 ? 9 : codes[a]) - (codes[b] < 0 ? 9 : codes[b]) || place(a) - place(b)),
  };
  for (const [name, rows] of Object.entries(rowsBy)) {
    for (const [from, to, columns] of [[0, N, 7], [3, 20, 17], [10, 11, 1]]) {
      const { answer, buffers: [bytes, strip] } = answers({ ask: "heat", order: name, focus: 2, strip: "label", from, to, columns });
      assert.deepEqual(answer, { order: name, from, to, columns, rows: name === "clustered" ? [5, 4, 3, 2, 1, 0] : null });
      for (let column = 0; column < columns; column++) {
        const [start, end] = columnRange(column, columns, to - from);
        const here = rows.slice(from + start, from + end);
        for (let k = 0; k < R; k++) assert.equal(bytes.getUint8(k * columns + column), Math.max(...here.map((row) => matrix[row][k])));
        const counts = [0, 1, 2, -1].map((code) => here.filter((row) => codes[row] === code).length);
        assert.equal(strip.getInt16(2 * column, true), [0, 1, 2, -1][counts.indexOf(Math.max(...counts))]);
      }
    }
    assert.deepEqual(answers({ ask: "places", order: name, focus: 2, rows: [3, 17] }).answer, [rows.indexOf(3), rows.indexOf(17)]);
    const { answer: cell } = answers({ ask: "cell", order: name, focus: 2, from: 5, to: 30, component: 1 });
    const values = rows.slice(5, 30).map((row) => matrix[row][1]);
    assert.equal(cell.at, 5 + values.indexOf(Math.max(...values)));
    assert.equal(cell.example.row, rows[cell.at]);
    const exact = cell.example.coefficients.find(({ component }) => component === 1)?.value;
    assert.equal(cell.coefficient, exact ?? (Math.max(...values) * 0.5) / 255);
  }
});

test("a page without a kernel says what it does not have", () => {
  const { saved, overview } = small();
  const answers = createHeatAnswers(saved, overview, () => undefined);
  const heat = { ask: "heat", order: "strongest component", focus: 0, strip: "", from: 0, to: N, columns: 4 };
  assert.equal(answers(heat).buffers.length, 1);
  assert.throws(() => answers({ ...heat, order: "alphabet" }), /no order “alphabet”/);
  assert.throws(() => answers({ ...heat, from: 9, to: 9 }), /no examples from 9 to 9: this page has 40/);
  assert.throws(() => answers({ ...heat, ask: "cell", component: 0 }), /saved without example \d+/);
  assert.equal(answers({ ask: "component", component: 0 }), null);
});

// ---------------------------------------------------------------------------------------------------------------------------- the panel

let world;
afterEach(() => {
  world?.scope.dispose();
  world = null;
});

/** The panel in a page, with a kernel that answers when it is told to. */
async function open(change = () => {}) {
  const page = openPage();
  const made = small();
  const state = { overview: made.overview, component: 2, pinned: 4, selection: [], order: "", strip: "label" };
  change(state, made);
  const model = fakeModel(state);
  const answers = createHeatAnswers(made.saved, made.overview, (row) => made.examples[row]);
  const { heatmap } = await import("../src/heatmap.js");
  const scope = createScope();
  const traits = createTraits(model);
  const requests = createRequests(model, scope);
  const root = page.document.createElement("div");
  page.document.body.append(root);
  const theme = createTheme(root, traits, scope);
  const view = createView(traits, requests, scope);
  root.append(heatmap({ traits, view, requests, theme, scope }));
  const answered = new Set();
  const serve = async (skip = []) => {
    for (const message of [...model.sent]) {
      if (answered.has(message.id) || message.ask === "cancel" || skip.includes(message.ask)) continue;
      answered.add(message.id);
      const found = answers(message);
      if (found) model.tell("msg:custom", { id: message.id, answer: found.answer }, found.buffers);
    }
    await settle();
  };
  const labelled = (name) => [...root.querySelectorAll("[aria-label]")].find((node) => node.getAttribute("aria-label") === name);
  const canvas = root.querySelector("canvas");
  const wrapper = labelled("all examples by components");
  canvas.getBoundingClientRect = () => ({ left: 0, top: 0, width: 900, height: 100 });
  const fire = (node, type, { pointerId = 1, pointerType = "mouse", ...options } = {}) => {
    const Kind = { wheel: page.window.WheelEvent, keydown: page.window.KeyboardEvent }[type] ?? page.window.MouseEvent; // jsdom has no pointer events
    const event = Object.assign(new Kind(type, { bubbles: true, cancelable: true, ...options }), { pointerId, pointerType });
    node.dispatchEvent(event);
    return event;
  };
  world = {
    ...page, ...made, model, root, traits, scope, labelled, canvas, wrapper, serve, fire,
    key: (name, options) => fire(wrapper, "keydown", { key: name, ...options }),
    shown: () => root.querySelector(".nx-shown").textContent.replace(/\u202f/g, ""),
    readout: () => root.querySelector(".nx-readout").textContent,
    names: () => [...root.querySelectorAll(".nx-gutter span")].map((node) => Number(node.querySelector("b").textContent)),
    frame: () => new Promise((resolve) => setTimeout(resolve, 60)),
    pause: () => new Promise((resolve) => setTimeout(resolve, 170)),
  };
  return world;
}

test("the whole is asked for at once, with the first order, and drawn when it is here", async () => {
  const { model, serve, canvas, frame, names, shown } = await open();
  assert.deepEqual(model.asked("heat").map(({ id: _, ...rest }) => rest), [{ ask: "heat", order: "strongest component", focus: 0, strip: "label", from: 0, to: N, columns: N }]);
  await serve();
  await frame();
  assert.ok(canvas.pen.drawn >= 2, "heat and strip");
  assert.deepEqual(names(), [0, 1, 2, 3, 4, 5]);
  assert.equal(shown(), "40 examples");
  await world.pause();
  assert.equal(model.asked("heat").length, 1, "one column an example is sharp enough");
});

test("hover tells the value at once and the example after a while, once", async () => {
  const { serve, fire, canvas, readout, model, pause, matrix, order, traits } = await open();
  await serve();
  fire(canvas, "pointermove", { clientX: (900 * 10.5) / N, clientY: 16 * 1 + 8 });
  assert.match(readout(), new RegExp(`^1 label 1 · ${((matrix[order[10]][1] * 0.5) / 255).toFixed(2)} · place 11`));
  assert.equal(model.asked("cell").length, 0);
  fire(canvas, "pointermove", { clientX: (900 * 10.6) / N, clientY: 16 * 1 + 9 });
  await pause();
  assert.deepEqual(model.asked("cell").map(({ from, to, component }) => [from, to, component]), [[10, 11, 1]]);
  await serve();
  assert.match(readout(), new RegExp(`example ${order[10]} .*“text of ${order[10]}”`));
  assert.deepEqual(traits.selection, []);
  fire(canvas, "pointerleave");
  assert.match(readout(), /Point at a cell/);
});

test("a click chooses the component at once and picks the example when it is known", async () => {
  const { serve, fire, canvas, model, order, pause } = await open();
  await serve();
  fire(canvas, "click", { clientX: (900 * 3.5) / N, clientY: 16 * 5 + 8 });
  assert.equal(model.get("component"), 5);
  assert.deepEqual(model.get("selection"), []);
  await serve();
  assert.deepEqual(model.get("selection"), [order[3]]);
  fire(canvas, "click", { clientX: (900 * 3.5) / N, clientY: 16 * 5 + 8 });
  assert.deepEqual(model.get("selection"), [order[3]]);
  await pause();
  assert.deepEqual(model.asked("places").map(({ rows }) => rows), [[order[3]]]);
});

test("keys move the cursor, pick, zoom and come back", async () => {
  const { serve, key, model, order, readout, shown, pause, wrapper, fire } = await open();
  await serve();
  key("ArrowRight"); // the first key only shows the cursor, where the component in focus is
  assert.match(readout(), /^2 label 2 .* place 1 /);
  key("ArrowRight");
  key("ArrowDown");
  assert.match(readout(), /^3 label 3 .* place 2 /);
  key("End");
  assert.match(readout(), /place 40 /);
  key("Home");
  key("Enter");
  await serve();
  assert.equal(model.get("component"), 3);
  assert.deepEqual(model.get("selection"), [order[0]]);
  key("+");
  assert.equal(shown(), "examples 1 to 20 of 40");
  for (let i = 0; i < 25; i++) key("ArrowRight");
  assert.match(readout(), /place 26 /);
  assert.match(shown(), /to 26 of 40$/, "the window follows the cursor");
  key("-");
  key("0");
  assert.equal(shown(), "40 examples");
  assert.equal(key("q").defaultPrevented, false);
  fire(wrapper, "blur");
  await pause();
  assert.equal(model.asked("heat").length, 1);
});

test("dragging moves, and is no click", async () => {
  const { serve, fire, canvas, key, shown, model } = await open();
  await serve();
  key("+");
  fire(canvas, "pointerdown", { clientX: 500, clientY: 20, button: 0 });
  fire(canvas, "pointermove", { clientX: 455, clientY: 20, buttons: 1 });
  fire(canvas, "pointerup", { clientX: 455, clientY: 20 });
  fire(canvas, "click", { clientX: 455, clientY: 20 });
  assert.equal(shown(), "examples 12 to 31 of 40"); // 45 of 900 pixels are one of 20 examples
  fire(canvas, "pointerdown", { clientX: 500, clientY: 20, button: 0 }); // let go outside: nothing tells, but the button is up when it comes back
  fire(canvas, "pointermove", { clientX: 300, clientY: 20, buttons: 0 });
  assert.equal(shown(), "examples 12 to 31 of 40");
  assert.equal(model.get("component"), 2);
});

test("the wheel zooms about the pointer once the pointer has moved here, and lets the page scroll before", async () => {
  const { serve, fire, canvas, shown } = await open();
  await serve();
  fire(canvas, "pointerenter", { clientX: 450, clientY: 20 });
  fire(canvas, "pointermove", { clientX: 450, clientY: 20 });
  assert.equal(fire(canvas, "wheel", { deltaY: -300, clientX: 450 }).defaultPrevented, false);
  assert.equal(shown(), "40 examples");
  fire(canvas, "pointermove", { clientX: 452, clientY: 21 });
  assert.equal(fire(canvas, "wheel", { deltaY: -300, clientX: 450 }).defaultPrevented, true);
  assert.match(shown(), /^examples 10 to 31 of 40$/);
  assert.equal(fire(canvas, "wheel", { deltaY: 3000, clientX: 450 }).defaultPrevented, true);
  assert.equal(fire(canvas, "wheel", { deltaY: 3000, clientX: 450 }).defaultPrevented, false, "all the way out, the page scrolls on");
});

test("two fingers zoom", async () => {
  const { serve, fire, canvas, shown } = await open();
  await serve();
  fire(canvas, "pointerdown", { pointerId: 1, pointerType: "touch", clientX: 400, clientY: 20 });
  fire(canvas, "pointerdown", { pointerId: 2, pointerType: "touch", clientX: 500, clientY: 20 });
  fire(canvas, "pointermove", { pointerId: 1, pointerType: "touch", clientX: 300, clientY: 20 });
  fire(canvas, "pointermove", { pointerId: 2, pointerType: "touch", clientX: 600, clientY: 20 });
  const [, from, to] = /examples (\d+) to (\d+)/.exec(shown());
  assert.ok(to - from <= 20 && from > 5 && to < 35);
});

test("another order shows its own picture, from the start; a strip and the theme leave the window alone", async () => {
  const { serve, model, key, shown, root, labelled, frame, names } = await open();
  await serve();
  key("+");
  const window = shown();
  model.set("strip", "");
  assert.equal(model.asked("heat").at(-1).strip, "");
  await serve();
  model.set("theme", "dark");
  model.set("selection", [3]);
  await serve();
  assert.equal(shown(), window);
  const order = labelled("order of the examples");
  order.value = "clustered";
  order.dispatchEvent(new world.window.Event("change"));
  assert.equal(model.get("order"), "clustered");
  assert.equal(model.asked("heat").at(-1).order, "clustered");
  assert.deepEqual(model.asked("places").at(-1).rows, [3]);
  assert.equal(shown(), "40 examples");
  await serve();
  await frame();
  assert.deepEqual(names(), [5, 4, 3, 2, 1, 0], "its own order of the rows");
  assert.match(root.textContent, /rows clustered too/);
  model.set("order", "no such order");
  assert.equal(order.value, "strongest component");
});

test("the order by the component in focus follows the focus, other orders do not ask again", async () => {
  const { serve, model } = await open((state) => { state.order = FOCUS; });
  await serve();
  model.set("component", 5);
  assert.deepEqual(model.asked("heat").map(({ focus }) => focus), [2, 5]);
  await serve();
  model.set("order", "column: label");
  await serve();
  model.set("component", 1);
  assert.equal(model.asked("heat").length, 3);
});

test("a newer question takes the older one back", async () => {
  const { model, serve, root } = await open();
  model.set("order", "clustered");
  model.set("order", "column: label");
  const [first, second] = model.asked("heat");
  assert.deepEqual(model.asked("cancel").map(({ id }) => id), [first.id, second.id]);
  await serve();
  assert.equal(root.querySelector("[role=alert]"), null);
});

test("a failed tile says so in place, and Retry asks again; the picture that is there stays", async () => {
  const { model, root, serve, canvas, frame, pause } = await open();
  await model.reply("heat", { error: "the kernel is away" });
  assert.match(root.querySelector("[role=alert]").textContent, /examples by strongest component did not work: the kernel is away/);
  await pause();
  assert.equal(model.asked("heat").length, 1, "nobody asks again by themselves");
  [...root.querySelectorAll("[role=alert] button")].find((node) => node.textContent === "Retry").click();
  assert.equal(model.asked("heat").length, 2);
  await serve();
  await frame();
  assert.equal(root.querySelector("[role=alert]"), null);
  assert.ok(canvas.pen.drawn > 0);
});

test("an answer of the wrong size is a failure, not a picture", async () => {
  const { model, root } = await open();
  await model.reply("heat", { answer: { order: "strongest component", from: 0, to: N, columns: N, rows: null } });
  assert.match(root.querySelector("[role=alert]").textContent, /has not the size that was asked for/);
});

test("an example that does not come is told where it would have been", async () => {
  const { serve, fire, canvas, model, readout, pause } = await open();
  await serve();
  fire(canvas, "pointermove", { clientX: 5, clientY: 5 });
  await pause();
  await model.reply("cell", { error: "gone" });
  assert.match(readout(), /the example did not come: gone/);
});

test("rows follow the search and the sort, and an empty search says so", async () => {
  const { serve, model, names, frame, root, canvas } = await open();
  await serve();
  model.set("sort", "share");
  await frame();
  assert.deepEqual(names(), [5, 4, 3, 2, 1, 0]);
  model.set("query", "label 3");
  await frame();
  assert.deepEqual(names(), [3]);
  model.set("query", "no such thing");
  assert.match(root.textContent, /No component matches the search/);
  assert.equal(canvas.closest("[hidden]") !== null, true);
});

test("an order that is chosen while the search finds nothing is shown afterwards", async () => {
  const { serve, model, names, frame } = await open((state) => { state.query = "no such thing"; });
  assert.equal(model.asked("heat").length, 1);
  await serve();
  model.set("order", "clustered");
  assert.equal(model.asked("heat").at(-1).order, "clustered");
  await serve();
  model.set("query", "");
  await frame();
  assert.deepEqual(names(), [5, 4, 3, 2, 1, 0]);
});

test("no examples, no columns: said, and nothing is asked", async () => {
  const { model, root, labelled } = await open((state) => { Object.assign(state.overview, { n_examples: 0, columns: [] }); });
  assert.match(root.textContent, /There are no examples/);
  assert.equal(model.asked("heat").length, 0);
  assert.equal(labelled("colour the strip by"), undefined);
});

test("names from data are text", async () => {
  const { root, model, serve } = await open((state) => { state.labels = { 2: "<img src=x onerror=alert(1)>\u202e" }; });
  await serve();
  await world.frame();
  assert.equal(root.querySelector("img"), null);
  assert.match(root.querySelector(".nx-gutter").textContent, /<img src=x/);
  assert.doesNotMatch(root.textContent, /\u202e/);
  assert.match(root.querySelector(".nx-legend").textContent, /<b>perhaps<\/b>/);
  assert.equal(model.asked("heat").length, 1);
});

test("a hidden panel asks nothing until it is shown", async () => {
  const { model, root, serve } = await open();
  await serve();
  root.hidden = true;
  model.set("order", "clustered");
  assert.equal(model.asked("heat").length, 1);
  root.hidden = false;
  model.set("panel", "heatmap");
  assert.equal(model.asked("heat").at(-1).order, "clustered");
});

test("nothing is left when it goes, and nothing piles up while it works", async () => {
  const { serve, model, key, root, scope, counts, frame, fire, canvas } = await open();
  await serve();
  await frame();
  const nodes = root.querySelectorAll("*").length;
  for (let i = 0; i < 40; i++) {
    key(i % 2 ? "+" : "-");
    key("ArrowRight");
    fire(canvas, "pointermove", { clientX: 20 * i, clientY: 20 });
    model.set("component", i % R);
    await serve();
  }
  await frame();
  assert.ok(root.querySelectorAll("*").length <= nodes + 4);
  scope.dispose();
  assert.equal(model.listening(), 0);
  assert.deepEqual(counts, { listeners: 0, observers: 0 });
});
