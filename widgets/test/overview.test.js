// The list, the table, the map, the search and the comparison: what they compute, and what they do with a model that only records.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { afterEach, beforeEach, test } from "node:test";
import { COLUMNS, asTsv } from "../src/columns.js";
import compare from "../src/compare.js";
import { componentList } from "../src/component_list.js";
import { classColours, componentMap } from "../src/component_map.js";
import { componentTable } from "../src/component_table.js";
import { createSignal } from "../src/signal.js";
import { klRatio } from "../src/figures.js";
import { arrange, named, parseSort } from "../src/listing.js";
import { dotAt, fit, inside, next, placeLabels, radius, spread } from "../src/mapping.js";
import { arrangePairs, matrixOrder, mostAlike, pooled } from "../src/pairs.js";
import { createRequests } from "../src/requests.js";
import { createScope } from "../src/scope.js";
import { entryOf, find } from "../src/search.js";
import { createTraits } from "../src/traits.js";
import { createView } from "../src/view.js";
import { fakeModel, openPage, settle } from "./page.js";

const summary = (component, more = {}) => ({
  component, label: `label ${component}`, share: 1 / (component + 2), examples: 10 * (component + 1), histogram: [3, 2, 1], max_coefficient: 1, main_label: ["NUM", "HUM"][component % 2],
  purity: 0.95, counted: 20, errors: 0.05, kl_ratio: null, fine: null, ...more,
});
const box = { x: 0, y: 0, width: 400, height: 300 };

// ------------------------------------------------------------------------------------------------------------------------------ pure

test("search answers as Python does", async () => {
  const { entries, cases } = JSON.parse(await readFile(new URL("search_cases.json", import.meta.url), "utf8"));
  for (const { query, components, why } of cases) assert.deepEqual(find(entries, query), { components, why }, query);
});

test("an entry is made of what a saved page holds", () => {
  const detail = { top: [{ text: "How many ?" }], enriched: [{ column: "word", values: [{ name: "many" }] }] };
  assert.deepEqual(entryOf(summary(0, { fine: { name: "NUM:count" } }), detail), { label: "label 0", values: ["NUM", "NUM:count", "many"], texts: ["How many ?"] });
  assert.deepEqual(entryOf(summary(0), undefined).texts, []);
});

test("names are searched by words, by number, in notes", () => {
  const one = summary(7, { label: "how · many", fine: { name: "NUM:count" } });
  assert.ok(named(one, {}, {}, "many HOW"));
  assert.ok(named(one, {}, {}, "#7") && named(one, {}, {}, "7"));
  assert.ok(named(one, { 7: "counting" }, {}, "counting"));
  assert.ok(named(one, {}, { 7: "look again" }, "again"));
  assert.ok(!named(one, {}, {}, "many years"));
});

test("sorting: what is missing comes last either way, equal ones by share", () => {
  const some = [summary(0, { errors: null }), summary(1, { errors: 0.5 }), summary(2, { errors: 0.1 }), summary(3, { errors: 0.5 })];
  const numbers = (key, falling, notes = {}, stars = []) => arrange(some, {}, notes, stars, key, falling).map(({ component }) => component);
  assert.deepEqual(numbers("errors", true), [1, 3, 2, 0]);
  assert.deepEqual(numbers("errors", false), [2, 1, 3, 0]);
  assert.deepEqual(numbers("kl", true), [0, 1, 2, 3]);
  assert.deepEqual(numbers("note", false, { 2: "b", 3: "a" }), [3, 2, 0, 1]);
  assert.deepEqual(numbers("star", true, {}, [2]), [2, 0, 1, 3]);
  assert.deepEqual(arrange([summary(0, { label: "c 10" }), summary(1, { label: "c 9" })], {}, {}, [], "name", false).map(({ component }) => component), [1, 0]);
  assert.deepEqual(parseSort("-nonsense"), { key: "share", falling: true });
  assert.deepEqual(parseSort("number"), { key: "number", falling: false });
});

test("a copied table has plain figures and cannot run as a formula", () => {
  const said = { labels: { 1: "=SUM(A1)\tx" }, notes: { 0: "line\none" }, stars: new Set([0]), examples: 200 };
  const [heads, first, second] = asTsv([summary(0, { fine: { column: "f", name: "fine", share: 0.9, expected: 0.25 } }), summary(1)], said).split("\n").map((line) => line.split("\t"));
  assert.equal(heads.length, COLUMNS.length + 2);
  assert.deepEqual([heads.length, heads.length], [first.length, second.length]);
  const cell = (row, head) => row[heads.indexOf(head)];
  assert.equal(cell(first, "starred"), "1");
  assert.equal(cell(first, "energy"), "0.5");
  assert.equal(cell(first, "fine label share"), "0.9");
  assert.equal(cell(first, "note"), "line one");
  assert.equal(cell(second, "name"), "'=SUM(A1) x");
});

test("a KL ratio that was not measured is empty", () => {
  assert.deepEqual([klRatio(summary(0), 0), klRatio(summary(0, { kl_ratio: [12.3, 0.01] }), 0), klRatio(summary(0, { kl_ratio: [12.3, 0.01] }), 1)], ["", "12", "<0.1"]);
});

test("places are fitted with their proportions kept", () => {
  const points = fit([[0, 0.4], [1, 0.4], [0.5, 0.6]], box);
  assert.deepEqual(points[0], { x: 0, y: 110 });
  assert.deepEqual(points[1], { x: 400, y: 110 });
  assert.ok(Math.abs(points[2].y - 190) < 1e-9, "0.2 of a width of 1 is 80 of 400 pixels");
  assert.deepEqual(fit([[0.5, 0.5], [0.5, 0.5]], box), [{ x: 200, y: 150 }, { x: 200, y: 150 }]);
});

test("dots part until none covers another, also from one place", () => {
  const points = spread(Array.from({ length: 30 }, () => ({ x: 200, y: 150 })), Array(30).fill(6), box);
  for (let i = 0; i < 30; i++) for (let j = 0; j < i; j++) assert.ok(Math.hypot(points[i].x - points[j].x, points[i].y - points[j].y) > 11.9, `${i} ${j}`);
  const apart = [{ x: 20, y: 20 }, { x: 300, y: 200 }];
  assert.deepEqual(spread(apart, [5, 5], box), apart);
  for (const { x, y } of spread([{ x: -50, y: 500 }], [5], box)) assert.deepEqual([x, y], [5, 295]);
});

test("area follows the share", () => {
  assert.equal(radius(1, 1, 20), 20);
  assert.equal(radius(0.25, 1, 20), 10);
  assert.equal(radius(0, 1, 20), 4);
  assert.equal(radius(0, 0, 20), 4);
});

test("a press finds the nearest dot in reach", () => {
  const points = [{ x: 10, y: 10 }, { x: 40, y: 10 }];
  assert.equal(dotAt(points, [5, 5], { x: 20, y: 10 }, 8), 0);
  assert.equal(dotAt(points, [5, 5], { x: 30, y: 10 }, 8), 1);
  assert.equal(dotAt(points, [5, 5], { x: 40, y: 60 }, 8), -1);
});

test("arrows go to the near dot in their direction, and stay where there is none", () => {
  const points = [{ x: 0, y: 0 }, { x: 30, y: 5 }, { x: 100, y: 0 }, { x: 2, y: 50 }];
  assert.equal(next(points, 0, 1, 0), 1);
  assert.equal(next(points, 1, 1, 0), 2);
  assert.equal(next(points, 0, 0, 1), 3);
  assert.equal(next(points, 0, -1, 0), 0);
  assert.equal(next(points, 0, 1, 0, (i) => i !== 1), 2);
});

test("a lasso holds what is inside, also where it is hollow", () => {
  const hook = [[0, 0], [100, 0], [100, 100], [60, 100], [60, 40], [40, 40], [40, 100], [0, 100]].map(([x, y]) => ({ x, y }));
  assert.ok(inside(hook, { x: 20, y: 50 }));
  assert.ok(!inside(hook, { x: 50, y: 70 }));
  assert.ok(!inside(hook, { x: 120, y: 50 }));
  assert.ok(!inside([], { x: 0, y: 0 }));
});

test("names find room beside their dots or are left out", () => {
  const points = [{ x: 200, y: 150 }, { x: 212, y: 150 }, { x: 390, y: 20 }];
  const placed = placeLabels(points, [5, 5, 5], [0, 1, 2].map((index) => ({ index, width: 60 })), 14, box);
  assert.equal(placed.length, 3);
  assert.ok(placed[0].x + 60 <= 200, "right of the first stands the second");
  assert.ok(placed[2].x + 60 <= 390, "no room to the right of the edge");
  for (const [i, one] of placed.entries()) {
    for (const other of placed.slice(0, i)) assert.ok(Math.abs(one.y - other.y) >= 14 || one.x >= other.x + 60 || other.x >= one.x + 60);
  }
  const crowded = Array.from({ length: 100 }, (_, i) => ({ x: 150 + 10 * (i % 10), y: 100 + 10 * Math.floor(i / 10) }));
  assert.ok(placeLabels(crowded, Array(100).fill(4), crowded.map((_, index) => ({ index, width: 60 })), 14, box).length < 40);
});

test("classes have the colours of the column that names them", () => {
  const components = [summary(0), summary(1)];
  const { names, colour } = classColours({ components, columns: [{ name: "fine", values: ["x"] }, { name: "label", values: ["LOC", "NUM", "HUM"] }] });
  assert.deepEqual(names, ["NUM", "HUM"]);
  assert.notEqual(colour("NUM"), colour("HUM"));
  assert.equal(classColours({ components, columns: [] }).names.length, 2);
  assert.equal(colour("unheard of"), "var(--nx-dim)");
});

test("pairs are sorted, and the matrix has them on its diagonal", () => {
  const pairs = [{ a: 0, b: 2, agreement: 0.2, direction: 0.4, coefficients: 0.5 }, { a: 1, b: 0, agreement: 0.9, direction: 0.9, coefficients: 1 }];
  const data = { pairs, sides: { a: { components: [{ share: 0.7 }, { share: 0.1 }] }, b: { components: [] } }, alone: { a: [], b: [1] } };
  const order = (sort) => arrangePairs(data, sort).map(({ a }) => a);
  assert.deepEqual([order("-agreement"), order("agreement"), order("-share"), order("a"), order("b")], [[1, 0], [0, 1], [0, 1], [0, 1], [1, 0]]);
  assert.deepEqual(matrixOrder(arrangePairs(data, "-agreement"), data.alone), { rows: [1, 0], columns: [0, 2, 1] });
});

test("a matrix that is drawn small keeps its largest values", () => {
  const values = Uint8Array.from([1, 2, 3, 4, 5, 6, 7, 8, 9]);
  assert.deepEqual([...pooled(values, 3, [2, 0, 1], [0, 1, 2], 3, 3)], [7, 8, 9, 1, 2, 3, 4, 5, 6]);
  assert.deepEqual([...pooled(values, 3, [0, 1, 2], [0, 1, 2], 1, 1)], [9]);
  assert.equal(mostAlike(Uint8Array.from([1, 9, 3, 4]), 2, "a", 0), 1);
  assert.equal(mostAlike(Uint8Array.from([1, 9, 3, 4]), 2, "b", 0), 1);
});

// ------------------------------------------------------------------------------------------------------------------------------ the page

let page, model, scope, context, el;

beforeEach(() => {
  page = openPage();
  globalThis.ShadowRoot = page.window.ShadowRoot;
});
afterEach(() => scope?.dispose());

const key = (node, name, more = {}) => node.dispatchEvent(new page.window.KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true, ...more }));
const click = (node) => node.dispatchEvent(new page.window.MouseEvent("click", { bubbles: true }));
const pointer = (node, type, x, y, more = {}) => node.dispatchEvent(Object.assign(new page.window.MouseEvent(type, { bubbles: true, button: 0, clientX: x, clientY: y, ...more }), { pointerType: "mouse", pointerId: 1 }));
const labelled = (name) => [...el.querySelectorAll("[aria-label]")].find((node) => node.getAttribute("aria-label") === name);
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function open(part, state = {}, overview = {}) {
  const components = Array.from({ length: 5 }, (_, i) => summary(i));
  model = fakeModel({
    overview: { title: "t", subtitle: "s", n_examples: 100, n_components: 5, classes: [], columns: [], components, places: [[0, 0], [1, 0], [0, 1], [1, 1], [0.5, 0.5]], ...overview },
    panels: ["components"], ...state,
  });
  scope = createScope();
  const traits = createTraits(model);
  const requests = createRequests(model, scope);
  const focus = { changed: createSignal(), detail: null };
  context = { traits, requests, focus, scope, view: createView(traits, requests, scope) };
  el = page.document.body.appendChild(page.document.createElement("div"));
  el.append(part(context));
}
const order = (list) => [...list.children].map((node) => Number(/component (\d+)/.exec(node.getAttribute("aria-label") ?? node.querySelector("[aria-label]").getAttribute("aria-label"))[1]));

test("list: choosing a component writes into the two rows that change and no others", async () => {
  open(componentList);
  const list = labelled("components");
  const changed = [];
  const observer = new page.window.MutationObserver((records) => changed.push(...records.map(({ target }) => target)));
  observer.observe(list, { attributes: true, childList: true, characterData: true, subtree: true });
  click(list.children[3]);
  await settle();
  assert.equal(model.get("component"), 3);
  assert.deepEqual([...new Set(changed)].map((node) => order({ children: [node] })[0]).sort(), [0, 3]);
  assert.equal([...list.children].filter((node) => node.tabIndex === 0).length, 1);
});

test("list: S stars, and a star is said in words", () => {
  open(componentList);
  const list = labelled("components");
  key(list.children[0], "ArrowDown");
  key(list.children[1], "s");
  assert.deepEqual(model.get("stars"), [1]);
  assert.match(list.children[1].getAttribute("aria-label"), /starred/);
  click(list.children[1].querySelector(".nx-star"));
  assert.deepEqual(model.get("stars"), []);
  assert.equal(model.get("component"), undefined, "a star chooses nothing");
});

test("list: what Python finds joins what has the name, with the reason; failure is said", async () => {
  open(componentList);
  const list = labelled("components");
  model.set("query", "label 1");
  assert.match(el.querySelector(".nx-searching").textContent, /searching words and examples/);
  assert.deepEqual(order(list), [1]);
  await wait(170);
  await model.reply("search", { answer: { components: [4, 1], why: ["3 of 20 top examples: …label 1…", "in its words"] } });
  assert.deepEqual(order(list), [1, 4]);
  assert.equal(list.children[1].querySelector(".nx-why").textContent, "3 of 20: …label 1…");
  assert.ok(list.children[0].querySelector(".nx-why").hidden);
  assert.ok(el.querySelector(".nx-searching").hidden);
  assert.equal(context.view.best, 1);
  model.set("query", "zzz");
  await wait(170);
  await model.reply("search", { error: "no kernel" });
  assert.match(el.querySelector(".nx-searching").textContent, /only names were searched: no kernel/);
  assert.match(el.textContent, /No component has “zzz”/);
});

test("list: an answer to an older question is not shown", async () => {
  open(componentList);
  model.set("query", "a");
  await wait(170);
  const { id } = model.asked("search").at(-1);
  model.set("query", "qq");
  model.tell("msg:custom", { id, answer: { components: [0], why: [""] } }, []);
  await wait(170);
  await model.reply("search", { answer: { components: [], why: [] } });
  assert.deepEqual(order(labelled("components")), []);
});

test("list: the sort box sets the trait and the rows say that figure", () => {
  open(componentList);
  const sort = labelled("sort components");
  sort.value = "examples";
  sort.dispatchEvent(new page.window.Event("change"));
  assert.equal(model.get("sort"), "-examples");
  const list = labelled("components");
  assert.deepEqual(order(list), [4, 3, 2, 1, 0]);
  assert.equal(list.children[0].querySelector(".nx-value").textContent, "50");
  click(labelled("reverse order, now falling"));
  assert.equal(model.get("sort"), "examples");
});

test("table: heads sort and say so, Enter chooses, arrows move, S stars, F2 renames", () => {
  open(componentTable);
  const body = el.querySelector("tbody");
  const head = [...el.querySelectorAll("th button")].find((node) => node.textContent.startsWith("examples"));
  click(head);
  assert.equal(model.get("sort"), "-examples");
  assert.equal(head.closest("th").getAttribute("aria-sort"), "descending");
  click(head);
  assert.equal(head.closest("th").getAttribute("aria-sort"), "ascending");
  assert.equal(el.querySelectorAll("[aria-sort]").length, 1);
  key(body.children[0], "End");
  assert.equal(page.document.activeElement, body.lastChild);
  key(body.lastChild, "Enter");
  assert.equal(model.get("component"), 4);
  assert.equal(body.lastChild.getAttribute("aria-selected"), "true");
  key(body.lastChild, "s");
  assert.deepEqual(model.get("stars"), [4]);
  assert.equal(labelled("star component 4").getAttribute("aria-pressed"), "true");
  key(body.lastChild, "F2");
  const input = labelled("name of component 4");
  input.value = "mine";
  key(input, "Enter");
  assert.deepEqual(model.get("labels"), { 4: "mine" });
  assert.equal(body.lastChild.querySelector(".nx-label").textContent, "mine");
});

test("table: columns without anything to say are left out", () => {
  open(componentTable, {}, { components: [summary(0, { main_label: "", errors: null }), summary(1, { main_label: "", errors: null })] });
  const heads = [...el.querySelectorAll("th button")].map((node) => node.textContent.replace(/[↑↓]/, ""));
  assert.deepEqual(heads, ["★", "#", "name", "energy", "examples", "KL −", "KL +", "note"]);
});

test("table: copies what is shown", async () => {
  let copied = "";
  Object.defineProperty(globalThis, "navigator", { value: { clipboard: { writeText: async (text) => { copied = text; } } }, configurable: true });
  open(componentTable, { query: "label 2" });
  click(labelled("copy the table as tab-separated text"));
  await settle();
  assert.equal(copied.split("\n").length, 2);
  assert.match(el.querySelector("[role=status]").textContent, /1 rows? copied/);
});

const dots = () => [...el.querySelectorAll("[role=option]")];
const dot = (number) => dots().find((node) => node.getAttribute("aria-label").startsWith(`component ${number}:`));

/** The map draws when it has a width, which jsdom does not give by itself. */
async function openMap(state, overview) {
  Object.defineProperty(page.window.HTMLElement.prototype, "clientWidth", { get: () => 600, configurable: true });
  open(componentMap, state, overview);
  await wait(40);
}

test("map: a click chooses the nearest dot, arrows move, Enter chooses, S stars", async () => {
  await openMap();
  const picture = labelled("map of components").matches("svg") ? labelled("map of components") : el.querySelector("svg[role=listbox]");
  const circle = dot(3).querySelector(".nx-dot");
  const [x, y] = [Number(circle.getAttribute("cx")) + 2, Number(circle.getAttribute("cy"))];
  pointer(picture, "pointerdown", x, y);
  pointer(picture, "pointerup", x, y);
  assert.equal(model.get("component"), 3);
  assert.equal(dot(3).getAttribute("aria-selected"), "true");
  key(dot(3), "ArrowUp");
  assert.equal(page.document.activeElement, dot(1));
  assert.equal(dots().filter((node) => node.getAttribute("tabindex") === "0").length, 1);
  key(dot(1), "Enter");
  assert.equal(model.get("component"), 1);
  key(dot(1), "s");
  assert.deepEqual(model.get("stars"), [1]);
  assert.match(dot(1).getAttribute("aria-label"), /starred/);
});

test("map: a lasso takes hold, L adds, all are starred at once, their examples are picked", async () => {
  await openMap({ selection: [9] });
  const picture = el.querySelector("svg[role=listbox]");
  for (const [type, x, y] of [["pointerdown", 0, 0], ["pointermove", 599, 0], ["pointermove", 599, 120], ["pointermove", 0, 120], ["pointerup", 0, 60]]) pointer(picture, type, x, y);
  const held = () => [...labelled("components in the lasso").children].map((node) => Number(node.textContent.split(" ")[0]));
  assert.deepEqual(held(), [0, 1]);
  assert.equal(model.get("component"), undefined, "a lasso chooses nothing");
  key(dot(4), "l"); // the keyboard is at the chosen one, component 0
  assert.deepEqual(held(), [1]);
  key(dot(0), "l");
  assert.deepEqual(held(), [0, 1]);
  click(labelled("star all components in the lasso"));
  assert.deepEqual(model.get("stars"), [0, 1]);
  assert.equal(labelled("star all components in the lasso").textContent, "Unstar all");
  click(labelled("star all components in the lasso"));
  assert.deepEqual(model.get("stars"), []);
  click(labelled("pick the top examples of the components in the lasso"));
  assert.deepEqual(model.asked("tops").at(-1).components, [0, 1]);
  await model.reply("tops", { answer: { rows: [[3, 9, 1, 2], [5]] } });
  assert.deepEqual(model.get("selection"), [9, 3, 1, 5], "three of each, beside what was picked before");
  click(labelled("empty the lasso"));
  assert.deepEqual(held(), []);
});

test("map: what does not match the search is faded and left out of a lasso", async () => {
  await openMap({ query: "label 1" });
  assert.deepEqual(dots().filter((node) => !node.classList.contains("nx-faded")).map((node) => /\d+/.exec(node.getAttribute("aria-label"))[0]), ["1"]);
  assert.match(dot(0).getAttribute("aria-label"), /does not match the search/);
  const picture = el.querySelector("svg[role=listbox]");
  for (const [type, x, y] of [["pointerdown", 0, 0], ["pointermove", 599, 0], ["pointermove", 599, 590], ["pointermove", 0, 590], ["pointerup", 0, 60]]) pointer(picture, type, x, y);
  assert.equal(labelled("components in the lasso").children.length, 1);
});

test("map: without places it says why", () => {
  open(componentMap, {}, { places: null });
  assert.match(el.textContent, /at least three components/);
});

test("hostile names are text, and a name of a megabyte is cut", async () => {
  for (const part of [componentList, componentTable, componentMap]) {
    page.document.body.replaceChildren();
    open(part, { labels: { 0: "<img src=x onerror=alert(1)>", 1: "x".repeat(1e6) }, notes: { 0: "<b>" } });
    assert.equal(el.querySelectorAll("img, b").length, 0);
    assert.ok(el.outerHTML.length < 60_000, `${part.name}: ${el.outerHTML.length}`);
    scope.dispose();
  }
});

test("parts leave no listener behind", () => {
  for (const part of [componentList, componentTable, componentMap]) {
    open(part, { query: "x" });
    assert.ok(model.listening() > 0);
    scope.dispose();
    assert.equal(model.listening(), 0, part.name);
    assert.equal(page.counts.observers, 0, part.name);
  }
});

// ------------------------------------------------------------------------------------------------------------------------------ compare

const example = (row, more = {}) => ({ row, coefficient: 0.5, text: `text ${row}`, gold: "NUM", prediction: "NUM", ...more });

function openComparison(more = {}, state = {}) {
  model = fakeModel({
    data: {
      title: "two", headline: "median agreement 0.60", same: 0.8, trouble: "",
      sides: { a: { title: "A", components: [0, 1].map((k) => ({ component: k, label: `a${k}`, share: 0.5 })) }, b: { title: "B", components: [0, 1, 2].map((k) => ({ component: k, label: `b${k}`, share: 0.3 })) } },
      pairs: [{ a: 0, b: 2, agreement: 0.3, direction: 0.5, coefficients: 0.6 }, { a: 1, b: 0, agreement: 0.9, direction: 0.95, coefficients: 0.95 }],
      alone: { a: [], b: [1] }, ...more,
    },
    matrix: new DataView(Uint8Array.from([10, 20, 77, 230, 40, 30]).buffer), a_component: 1, b_component: 0, sort: "-agreement", theme: "auto", ...state,
  });
  el = page.document.body.appendChild(page.document.createElement("div"));
  const close = compare.render({ model, el });
  scope = { dispose: close };
}

test("compare: pairs by agreement, then what is alone; choosing one asks for both lists", async () => {
  openComparison();
  const list = labelled("matched components");
  assert.deepEqual([...list.children].map((node) => node.getAttribute("aria-label").split(",", 2).join("")), ["1 a1 0 b0", "0 a0 2 b2", "no partner 1 b1"]);
  assert.equal(list.children[0].getAttribute("aria-selected"), "true");
  const asked = () => model.asked("top").map(({ side, component }) => `${side}${component}`);
  assert.deepEqual(asked(), ["a1", "b0"]);
  key(list, "ArrowDown");
  assert.equal(model.get("a_component"), 1, "moving chooses nothing");
  key(list, "Enter");
  await settle();
  assert.deepEqual([model.get("a_component"), model.get("b_component")], [0, 2]);
  assert.deepEqual(asked(), ["a1", "b0", "a0", "b2"]);
  click(list.children[2]);
  assert.deepEqual([model.get("a_component"), model.get("b_component")], [1, 1], "beside it stands the most alike");
});

test("compare: shared examples are marked with their rank on the other side", async () => {
  openComparison();
  const [a, b] = model.asked("top");
  model.tell("msg:custom", { id: a.id, answer: [example(3), example(5)] }, []);
  model.tell("msg:custom", { id: b.id, answer: [example(5), example(8, { text: "<img src=x>", prediction: "HUM" })] }, []);
  await settle();
  const lists = ["top examples of component 1 of a", "top examples of component 0 of b"].map(labelled);
  assert.match(lists[0].children[1].textContent, /= no\. 1 of b/);
  assert.ok(lists[1].children[0].classList.contains("nx-shared") && !lists[1].children[1].classList.contains("nx-shared"));
  assert.match(lists[1].children[1].textContent, /✗ predicts HUM<img src=x>/);
  assert.match(labelled("top examples of both").textContent, /matched · agreement 0\.90 · direction 0\.95 · coefficients 0\.95 · 1 of 2 top examples shared/);
});

test("compare: failure is said in place, with a way to ask again", async () => {
  openComparison();
  model.tell("msg:custom", { id: model.asked("top")[0].id, error: "no kernel" }, []);
  await settle();
  assert.match(el.querySelector("[role=alert]").textContent, /component 1 of a did not work: no kernel/);
  click(labelled("retry component 1 of a"));
  assert.equal(model.asked("top").length, 3);
});

test("compare: coefficients alone are called so, and directions are not offered", () => {
  openComparison({ trouble: "a and b have other coordinates", pairs: [{ a: 0, b: 0, agreement: 0.3, direction: null, coefficients: 0.3 }], alone: { a: [1], b: [1, 2] } });
  assert.match(el.querySelector(".nx-warning").textContent, /coefficients alone.*other coordinates/);
  assert.ok(![...labelled("sort pairs").options].some(({ value }) => value === "direction"));
  assert.doesNotMatch(labelled("matched components").children[0].getAttribute("aria-label"), /direction/);
});

test("compare: the matrix has a keyboard path and a readout", async () => {
  openComparison();
  const matrix = labelled("agreement of all components of a by all of b");
  assert.match(labelled("matrix").querySelector(".nx-readout").textContent, /a 1 a1 × b 0 b0: 0\.90, matched/);
  key(matrix, "End");
  assert.match(labelled("matrix").querySelector(".nx-readout").textContent, /a 0 a0 × b 1 b1: 0\.08$/);
  key(matrix, "Enter");
  assert.deepEqual([model.get("a_component"), model.get("b_component")], [0, 1]);
});

test("compare: leaves nothing behind", () => {
  openComparison();
  scope.dispose();
  assert.equal(model.listening(), 0);
  assert.equal(page.counts.observers, 0);
  assert.equal(page.counts.listeners, 0);
  assert.equal(el.children.length, 0);
});
