// Reading examples, one's own text, the trace: pure functions, and the panels under jsdom with a fake model.
import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { along, bandName } from "../src/bands.js";
import { worth } from "../src/example_row.js";
import { largestShare, part, strongest, tokenOpacity, visibleText } from "../src/tokens.js";
import { amount, curve, edgesOf, endOf, heightName, nearest, pathOf, places, pointAt, said, top } from "../src/trace_geometry.js";
import explorer from "../src/explorer.js";
import { fakeModel, openPage, settle } from "./page.js";

// ------------------------------------------------------------------------------------------------------------ words

test("opacity is logarithmic, 0 for nothing, 1 for the largest", () => {
  assert.equal(tokenOpacity(0, 1), 0);
  assert.equal(tokenOpacity(1, 0), 0);
  assert.ok(Math.abs(tokenOpacity(-0.3, 0.3) - 1) < 1e-12);
  assert.ok(Math.abs(tokenOpacity(0.1, 1) - (0.05 + 0.95 * Math.log10(1.9))) < 1e-12);
  assert.equal(largestShare([{ tokens: null }, { tokens: [{ text: "a", share: -0.4, space: false }] }]), 0.4);
});

test("the strongest word counts either way, and none where nothing counts", () => {
  const tokens = (...shares) => shares.map((share) => ({ text: "x", share, space: true }));
  assert.equal(strongest(tokens(0.1, -0.5, 0.3)), 1);
  assert.equal(strongest(tokens(0, 0)), -1);
  assert.equal(strongest([]), -1);
});

test("a long text is cut around its strongest word, and never beyond its ends", () => {
  assert.deepEqual(part(40, 20), [0, 40]);
  for (const centre of [-1, 0, 3, 250, 499]) {
    const [from, to] = part(500, centre);
    assert.equal(to - from, 30);
    assert.ok(from >= 0 && to <= 500 && from <= Math.max(0, centre) && Math.max(0, centre) < to);
  }
});

test("what cannot be seen is shown, and nothing is left that moves its neighbours", () => {
  assert.equal(visibleText("a\nb\r\nc\td"), "a↵b↵c⇥d");
  assert.equal(visibleText("\0\u001b\u007f\u0085"), "␀␛␡‹0085›");
  assert.equal(visibleText("safe\u202Etxt.exe\u2066"), "safe‹202e›txt.exe‹2066›");
  assert.equal(visibleText("x\ud800y\udc00z"), "x\ufffdy\ufffdz");
  assert.equal(visibleText("👩‍👧 é ñ 日本 שלום"), "👩‍👧 é ñ 日本 שלום");
  assert.equal(visibleText("<b>&amp;"), "<b>&amp;");
  const long = visibleText("y".repeat(1e6));
  assert.equal(long.length, 2001);
  assert.ok(long.endsWith("…"));
  assert.equal(visibleText("ab😀", 3), "ab\ufffd…", "a pair is not left open");
});

test("what a word is worth, as a share and as a sensitivity", () => {
  assert.equal(worth(-0.123, "share"), "\u221212.3\u202f% of the coefficient");
  assert.equal(worth(0.5, "sensitivity"), "0.50 of the most sensitive token");
});

test("bands are called by their ends; a mark stays on the histogram", () => {
  assert.equal(bandName({ low: 0.2, high: 0.4, examples: 1, share: 0.1 }), "0.20\u2009–\u20090.40");
  assert.equal(bandName({ low: 0, high: 0, examples: 1, share: 0.1 }), "zero");
  assert.deepEqual([along(0.5, 1), along(3, 1), along(-1, 1), along(1, 0)], [0.5, 1, 0, 0]);
});

// ------------------------------------------------------------------------------------------------------------ the trace's geometry

const edge = (kind, module, layer, from, to, ...values) => ({ kind, module, layer, from, to, values });
const TRACE = {
  component: 0, tokens: ["[CLS]", "why", "<b>"], classes: ["A", "B"], logits: [1, 3], derivative: [0.5, -1], layers: 2,
  edges: [
    edge("passed on", "head", -1, [0, 4], [-1, 5], 0.4, -1), edge("residual", "MLP", 1, [0, 3], [0, 4], 0.3, -0.8), edge("introduced", "attention", 1, [1, 2], [0, 3], 0.2, 0.4),
    edge("introduced", "embedding", -1, [1, -1], [1, 0], 0.001, 0.3), edge("introduced", "head", -1, [-1, 4], [-1, 5], 0.1, 0), edge("passed on", "head", -1, [1, 4], [-1, 5], 0.01, 0.02),
  ],
  introduced: [{ height: 0, values: [0.001, 0.3] }, { height: 3, values: [0.2, 0.4] }, { height: 5, values: [0.1, 0] }],
};

test("heights rise from the embeddings to the logits, each with its name", () => {
  assert.equal(top(TRACE), 5);
  assert.deepEqual([-1, 0, 1, 2, 3, 4, 5].map((height) => heightName(TRACE, height)),
    ["embeddings", "embeddings", "attention 0", "MLP 0", "attention 1", "MLP 1", "logits"]);
  const at = places(TRACE, 600);
  for (let height = 0; height < 5; height++) assert.ok(at.y(height) > at.y(height + 1));
  assert.ok(at.y(-1) <= at.height && at.y(5) >= 0);
  assert.equal(endOf(TRACE), 0, "the logits stand above the token that carries most");
});

test("an edge goes from its token and height to its other ones, also where a head sees no position", () => {
  const at = places(TRACE, 600);
  for (const one of TRACE.edges) {
    const points = curve(one, at, TRACE);
    const end = [at.x(one.to[0] < 0 ? 0 : one.to[0]), at.y(one.to[1])];
    assert.deepEqual(pointAt(points, 1), end);
    if (one.from[0] >= 0) assert.deepEqual(pointAt(points, 0), [at.x(one.from[0]), at.y(one.from[1])]);
    for (const [x, y] of points) assert.ok(x >= 0 && x <= at.width && y >= 0 && y <= at.height);
    assert.match(pathOf(points), /^M[\d.]+ [\d.]+C[\d.]+ [\d.]+ [\d.]+ [\d.]+ [\d.]+ [\d.]+$/);
  }
});

test("edges of a class: those strong enough, of the kinds asked for, the strongest first", () => {
  const at = places(TRACE, 600);
  const all = new Set(["introduced", "passed on", "residual"]);
  assert.deepEqual(edgesOf(TRACE, 1, 0.01, all, at).map(({ value }) => value), [-1, -0.8, 0.4, 0.3, 0.02]);
  assert.deepEqual(edgesOf(TRACE, 1, 0.35, all, at).map(({ value }) => value), [-1, -0.8, 0.4]);
  assert.deepEqual(edgesOf(TRACE, 0, 0.01, new Set(["residual"]), at).map(({ share }) => share), [0.3 / 0.4]);
  assert.deepEqual(edgesOf({ ...TRACE, edges: [] }, 0, 0.01, all, at), []);
  const many = { ...TRACE, edges: Array.from({ length: 900 }, (_, i) => edge("residual", "MLP", 0, [0, 1], [0, 2], 1 + i / 900, 0)) };
  assert.equal(edgesOf(many, 0, 0.01, all, at).length, 400);
});

test("the nearest edge is found on its way and not where none is", () => {
  const at = places(TRACE, 600);
  const drawn = edgesOf(TRACE, 1, 0.01, new Set(["introduced", "passed on", "residual"]), at);
  drawn.forEach(({ points }, i) => {
    const [x, y] = pointAt(points, 0.45);
    const found = nearest(drawn, x, y);
    const [fx, fy] = pointAt(drawn[found].points, 0.45);
    assert.ok(found === i || Math.hypot(fx - x, fy - y) < 10);
  });
  assert.equal(nearest(drawn, at.width + 100, at.height + 100), -1);
});

test("edges and amounts in words", () => {
  const shown = (text) => `‹${text}›`;
  assert.deepEqual(TRACE.edges.map((one) => said(one, TRACE, shown)), [
    "head: ‹[CLS]› → logits, passed on", "layer 1, MLP: ‹[CLS]›, residual", "layer 1, attention: ‹why› → ‹[CLS]›, introduced",
    "embeddings: ‹why›, introduced", "head: to the logits, introduced", "head: ‹why› → logits, passed on",
  ]);
  assert.equal(amount(-0.5, 2), "\u22120.5 (\u221225\u202f% of the whole)");
  assert.equal(amount(0.25, 0), "+0.25");
});

// ------------------------------------------------------------------------------------------------------------ the panels

const token = (text, share, space = true) => ({ text, share, space });
const row = (number, coefficient, text, tokens, more = {}) => ({
  row: number, coefficient, text, tokens, aside: tokens ? [{ name: "[CLS]", share: 0.5 }] : [], gold: "A", prediction: "A", probability: 0.9, duplicates: [], ...more,
});
const HOSTILE = ["<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "\u202Eevil\u2066", "nul\0", "lone\ud800", "m".repeat(1e5)];

function detail(component) {
  return {
    component,
    top: [
      row(3, 0.8, "why is it", [token("why", 0.3), token("is", -0.1), token("it", 0.3)], { duplicates: [7, 8] }),
      row(5, 0.6, "why not", [token("why", 0.4), token("not", 0.1)]),
    ],
    bands: [0.75, 0.5, 0.25, 0].map((low, i) => ({ low, high: low + 0.25, examples: i + 1, share: 0.1 * (i + 1) })).concat([{ low: 0, high: 0, examples: 10, share: 0.5 }]),
    enriched: [{ column: "word", values: [{ name: "why", count: 9, of: 10, low: 0.6, high: 0.98, everywhere: 0.05 }] }],
    neighbours: [{ component: 1 - component, cosine: 0.5, together: -0.2 }],
    energy: null, other_energy: [], sweep: null, preview: null, along: {}, unavailable: null,
  };
}

const SUMMARY = (component) => ({
  component, label: `label ${component}`, share: 0.5, examples: 12, histogram: [4, 3, 2, 1], max_coefficient: 1, main_label: "A", purity: 1, counted: 10, errors: 0, kl_ratio: null, fine: null,
});

const state = (more = {}) => ({
  overview: {
    title: "t", subtitle: "s", live: true, classes: ["A", "B"], n_examples: 20, n_components: 2, components: [SUMMARY(0), SUMMARY(1)], orders: ["usage"],
    columns: [], strengths: { low: -1, high: 1, step: 0.01 }, places: null,
  },
  panels: ["examples", "text", "trace"], panel: "examples", component: 0, ...more,
});

let page, model, el, cleanup;
const labelled = (name, scope = el) => [...scope.querySelectorAll("[aria-label]")].find((node) => node.getAttribute("aria-label") === name);
const button = (text, scope = el) => [...scope.querySelectorAll("button")].find((node) => node.textContent === text);
const options = () => [...el.querySelector(".nx-examples").children];
const key = (node, name) => node.dispatchEvent(new page.window.KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
const mouse = (node, type, more = {}) => node.dispatchEvent(new page.window.MouseEvent(type, { bubbles: true, ...more }));
const change = (node, value) => { node.value = value; node.dispatchEvent(new page.window.Event("change", { bubbles: true })); };

async function open(more, overview = {}) {
  const traits = state(more);
  Object.assign(traits.overview, overview);
  model = fakeModel(traits);
  el = page.document.body.appendChild(page.document.createElement("div"));
  cleanup = explorer.render({ model, el });
  await settle();
}

async function openExamples(more, overview, change = (found) => found) {
  await open(more, overview);
  await model.reply("component", { answer: change(detail(0)) });
}

beforeEach(() => { page = openPage(); });

test("the strongest word has its value beside it, a negative one more than its colour, and [CLS] stands aside", async () => {
  await openExamples();
  const [first] = options();
  assert.equal(first.querySelectorAll(".nx-value").length, 1);
  assert.match(first.querySelector(".nx-text").textContent, /^why30\u202f% is it$/);
  assert.deepEqual([...first.querySelectorAll(".nx-against")].map((node) => node.textContent), ["is"]);
  assert.match(first.querySelector(".nx-meta").textContent, /\[CLS\] 50/);
  assert.match(first.textContent, /^why30\u202f% is it coefficient 0\.80gold A✓ predicts A 90/);
  assert.match(el.querySelector(".nx-legend").textContent, /blue, dotted words lower it/);
});

test("arrows left and right walk the words and say what they are worth", async () => {
  await openExamples();
  const list = el.querySelector(".nx-examples");
  key(list, "Home");
  key(list, "ArrowRight");
  assert.match(el.querySelector(".nx-wordout").textContent, /“why” 30\.0\u202f% of the coefficient/);
  key(list, "ArrowRight");
  assert.match(el.querySelector(".nx-wordout").textContent, /“is” \u221210\.0/);
  assert.equal(el.querySelectorAll(".nx-cursor").length, 1);
  key(list, "ArrowLeft");
  assert.match(el.querySelector(".nx-wordout").textContent, /“why”/);
});

test("near-duplicates are folded with a count and unfold by mouse and by a button below the list", async () => {
  await openExamples();
  const act = [...options()[0].querySelectorAll(".nx-act")].find((node) => /alike/.test(node.textContent));
  assert.equal(act.textContent, "and 2 alike");
  mouse(act, "click");
  assert.deepEqual(model.asked("examples").at(-1).rows, [7, 8]);
  const alike = (number, text) => ({ row: number, text, gold: null, prediction: "A", probability: 1, coefficients: [{ component: 0, value: 0.5 }], unexplained: 0 });
  await model.reply("examples", { answer: [alike(7, "Why is it?"), alike(8, "why is it ?")] });
  assert.match(options()[0].querySelector(".nx-alike").textContent, /0\.50Why is it\?0\.50why is it \?/);
  assert.deepEqual(model.get("selection") ?? [], [], "unfolding does not pick");
  mouse(button("hide 2 alike"), "click");
  assert.equal(el.querySelector(".nx-alike"), null);
});

test("a band asks for its sample and its words, once; the top list comes back", async () => {
  await openExamples();
  const buttons = () => [...labelled("which examples").children];
  assert.deepEqual(buttons().map((node) => node.getAttribute("aria-pressed")), ["false", "false", "false", "false", "false", "true"]);
  mouse(buttons()[1], "click");
  assert.deepEqual({ ...model.asked("band").at(-1), id: 0 }, { id: 0, ask: "band", component: 0, band: 3 });
  assert.match(el.querySelector("[role=status]").textContent, /examples of 0\.00/);
  await model.reply("band", { answer: [row(11, 0.1, "who knows", null)] });
  assert.equal(labelled("examples of 0.00\u2009–\u20090.25").children.length, 1);
  const asked = model.asked("tokens").at(-1);
  assert.deepEqual([asked.rows, asked.mode, asked.pieces], [[11], "share", false]);
  await model.reply("tokens", { answer: { rows: [{ row: 11, tokens: [token("who", 0.6), token("knows", 0.2)], aside: [] }] } });
  assert.equal(options()[0].querySelectorAll(".nx-token").length, 2);
  mouse(buttons().at(-1), "click");
  assert.equal(options().length, 2);
  mouse(buttons()[1], "click");
  await settle();
  assert.equal(model.asked("band").length, 1);
  assert.equal(model.asked("tokens").length, 1);
  model.set("component", 1);
  await model.reply("component", { answer: detail(1) });
  assert.equal(buttons().at(-1).getAttribute("aria-pressed"), "true", "another component begins with its top examples");
});

test("a band that cannot be had says why, with Retry", async () => {
  await openExamples();
  mouse(labelled("which examples").children[0], "click");
  await model.reply("band", { error: "the file is gone" });
  assert.match(el.querySelector("[role=alert]").textContent, /examples of zero did not work: the file is gone/);
  mouse(button("Retry"), "click");
  assert.equal(model.asked("band").length, 2);
});

test("colouring by sensitivity is a trait; it is asked for, can be cancelled, and shares are not mistaken for it meanwhile", async () => {
  await openExamples();
  change(labelled("what colours words"), "sensitivity");
  assert.equal(model.get("tokens"), "sensitivity");
  const asked = model.asked("tokens").at(-1);
  assert.deepEqual([asked.mode, asked.pieces, asked.rows], ["sensitivity", false, [3, 5]]);
  assert.equal(el.querySelectorAll(".nx-token").length, 0);
  assert.match(el.querySelector(".nx-legend").textContent, /on their way/);
  mouse(button("Cancel"), "click");
  await settle();
  assert.match(el.querySelector("[role=status]").textContent, /input sensitivity: cancelled/);
  mouse(button("Ask again"), "click");
  await model.reply("tokens", { answer: { rows: [3, 5].map((number) => ({ row: number, tokens: [token("why", 1), token("x", 0.2)], aside: [{ name: "[CLS]", share: 0.4 }] })) } });
  assert.equal(el.querySelectorAll(".nx-token").length, 4);
  assert.equal(options()[0].querySelector(".nx-token").title, "1.00 of the most sensitive token");
  model.set("pieces", true);
  assert.deepEqual([model.asked("tokens").at(-1).pieces, labelled("words or tokens").value], [true, "tokens"]);
  model.set("tokens", "share");
  model.set("pieces", false);
  assert.equal(options()[0].querySelectorAll(".nx-token").length, 3, "what came with the detail needs no question");
});

test("rows that get no tokens are not asked for over and over", async () => {
  await openExamples({ tokens: "sensitivity" });
  await model.reply("tokens", { answer: { rows: [] } });
  assert.equal(model.asked("tokens").length, 1);
  assert.match(el.querySelector("[role=alert]").textContent, /some examples have no tokens/);
});

test("without a model nothing is asked and the page says so", async () => {
  await openExamples({ tokens: "sensitivity" }, { live: false });
  assert.equal(model.asked("tokens").length, 0);
  assert.match(el.querySelector(".nx-legend").textContent, /this page has no model to ask/);
});

test("an example is traced by double click, by mouse and by the button below; a click still picks", async () => {
  await openExamples();
  mouse(options()[1], "dblclick");
  assert.deepEqual([model.get("example"), model.get("panel")], [5, "trace"]);
  model.set("panel", "examples");
  mouse([...options()[0].querySelectorAll(".nx-act")].at(-1), "click");
  assert.deepEqual([model.get("example"), model.get("selection") ?? []], [3, []]);
  mouse(options()[0], "click");
  assert.deepEqual(model.get("selection"), [3]);
  key(el.querySelector(".nx-examples"), "ArrowDown");
  mouse(labelled("trace this example"), "click");
  assert.equal(model.get("example"), 5);
});

test("star, pin, note and neighbours are traits", async () => {
  await openExamples();
  mouse(labelled("star this component"), "click");
  assert.deepEqual(model.get("stars"), [0]);
  assert.equal(labelled("star this component").textContent, "★");
  const near = labelled("components like this one");
  assert.match(near.textContent, /1 · label 10\.50\u22120\.20/);
  mouse(near.querySelector(".nx-link"), "click", { shiftKey: true });
  assert.deepEqual([model.get("pinned"), model.get("component")], [1, 0]);
  mouse(near.querySelector(".nx-link"), "click");
  assert.equal(model.get("component"), 1);
  await model.reply("component", { answer: detail(1) });
  const note = labelled("note on component 1");
  change(note, " asks for reasons ");
  assert.deepEqual(model.get("notes"), { 1: "asks for reasons" });
  assert.match(labelled("words and labels commoner among the top examples").textContent, /why.*9 of 10.*5\.0/s);
});

test("a note that is being written is not overwritten, and goes to the component it was begun for", async () => {
  await openExamples({ notes: { 0: "old" } });
  const note = labelled("note on component 0");
  assert.equal(note.value, "old");
  note.focus();
  note.value = "old and new";
  model.set("notes", { 0: "old", 1: "elsewhere" });
  assert.equal(note.value, "old and new");
  change(note, "old and new");
  assert.deepEqual(model.get("notes"), { 0: "old and new", 1: "elsewhere" });
});

test("the pinned component's top examples are shown beside, and can be swapped in", async () => {
  await openExamples({ pinned: 1 });
  assert.deepEqual(model.asked("tops").at(-1).components, [1]);
  await model.reply("tops", { answer: { rows: [[2, 4]] } });
  const example = (number) => ({ row: number, text: `text ${number}`, gold: null, prediction: "", probability: 0, coefficients: [{ component: 1, value: 0.7 }], unexplained: 0.1 });
  await model.reply("examples", { answer: [example(2), example(4)] });
  assert.match(labelled("pinned component").textContent, /1 · label 1.*0\.70text 20\.70text 4/s);
  mouse(button("swap"), "click");
  assert.deepEqual([model.get("component"), model.get("pinned")], [1, 0]);
  mouse(labelled("unpin"), "click");
  assert.equal(labelled("pinned component").hidden, true);
});

test("long texts are cut around the strongest word until the whole is asked for", async () => {
  const many = Array.from({ length: 200 }, (_, i) => token(`w${i}`, i === 120 ? 0.5 : 0.001));
  await openExamples({}, {}, (found) => ({ ...found, top: [row(3, 0.8, "long", many)] }));
  assert.equal(el.querySelectorAll(".nx-token").length, 30);
  assert.match(options()[0].querySelector(".nx-text").textContent, /^… w105 .*w12050\u202f% w121.* …$/);
  change(labelled("how much of long texts"), "whole");
  assert.equal(el.querySelectorAll(".nx-token").length, 200);
});

const ANSWER = {
  text: "why me", prediction: "A", probability: 0.7, probabilities: [0.7, 0.3], coefficients: [{ component: 1, value: 0.6 }, { component: 0, value: 0.2 }], unexplained: 0.4,
  tokens: {}, neighbours: [row(9, 0.97, "why you", null)],
};

test("my text: Enter commits it as a trait, what is known early is shown, then its words", async () => {
  await open({ panel: "text" });
  const area = labelled("your text");
  area.value = "why me";
  key(area, "Enter");
  assert.equal(model.get("text"), "why me");
  assert.equal(model.asked("text").length, 1);
  await model.reply("text", { progress: { done: 1, total: 3, note: "which words component 1 hears" }, partial: ANSWER });
  const panel = labelled("my text");
  assert.match(panel.textContent, /1 · label 10\.600 · label 00\.20unexplained40/);
  assert.match(panel.textContent, /words of the next component are on their way/);
  await model.reply("text", { answer: { ...ANSWER, tokens: { 1: { tokens: [token("why", 0.4), token("me", 0.1)], aside: [{ name: "[CLS]", share: 0.5 }] } } } });
  assert.equal(panel.querySelectorAll(".nx-token").length, 2);
  assert.doesNotMatch(panel.textContent, /on their way/);
  mouse([...panel.querySelectorAll("button")].find((node) => /label 1/.test(node.textContent)), "click");
  assert.equal(model.get("component"), 1);
  mouse([...panel.querySelectorAll("button")].find((node) => node.textContent === "why you"), "click");
  assert.deepEqual(model.get("selection"), [9]);
  mouse(labelled("Trace it through the network"), "click");
  assert.deepEqual([model.get("example"), model.get("panel")], [-1, "trace"]);
});

test("my text: leaving the field and Look ask once, a newer text cancels the older, errors stand in place", async () => {
  await open({ panel: "text" });
  const area = labelled("your text");
  change(area, "first");
  mouse(button("Look"), "click");
  assert.equal(model.asked("text").length, 1);
  change(area, "second");
  assert.equal(model.asked("cancel").length, 1);
  await model.reply("text", { error: "this text is longer than the 512 tokens that the model reads: shorten it" });
  assert.match(el.querySelector("[role=alert]").textContent, /longer than the 512 tokens/);
  mouse(button("Look"), "click");
  assert.equal(model.asked("text").length, 3, "Look asks again after a failure");
  model.set("text", "");
  assert.equal(area.value, "");
  assert.equal(labelled("my text").querySelector("[role=alert]"), null);
});

test("my text: a page without a model says so", async () => {
  await open({ panel: "text", text: "hello" }, { live: false });
  assert.equal(model.asked("text").length, 0);
  assert.match(labelled("my text").textContent, /needs the model, and this page has none/);
});

test("the trace of the strongest example, of a chosen one, of my text; each asked for once", async () => {
  await openExamples({ panel: "trace" });
  const asked = () => model.asked("trace").map(({ component, row: number, text }) => [component, number, text]);
  assert.deepEqual(asked(), [[0, 3, ""]]);
  await model.reply("trace", { answer: TRACE });
  const panel = labelled("trace");
  assert.equal(labelled("logit of which class").value, "1", "the likeliest class first");
  assert.match(panel.textContent, /The logit of B changes by \u22121 a unit of strength; 5 edges are shown/);
  assert.equal(panel.querySelectorAll(".nx-tracescroll .nx-against").length, 2);
  change(labelled("what is traced"), "5");
  assert.equal(model.get("example"), 5);
  await model.reply("trace", { answer: { ...TRACE, edges: [] } });
  assert.match(panel.textContent, /0 edges are shown/);
  model.set("example", 3);
  model.set("example", -1);
  model.set("text", "mine");
  assert.deepEqual(asked(), [[0, 3, ""], [0, 5, ""], [0, -1, "mine"]]);
  assert.match(labelled("what is traced").textContent, /^my text: mine/);
});

test("the trace by keyboard: arrows walk the edges, the strongest first, and say what they are", async () => {
  await openExamples({ panel: "trace" });
  await model.reply("trace", { answer: TRACE });
  const walk = labelled("trace; arrow keys walk the edges, the strongest first");
  const readout = () => el.querySelector(".nx-trace .nx-readout").textContent;
  key(walk, "ArrowRight");
  assert.match(readout(), /^1 of 5: head: \[CLS\] → logits, passed on: \u22121 \(100\u202f% of the whole\)/);
  key(walk, "ArrowRight");
  assert.match(readout(), /^2 of 5: layer 1, MLP: \[CLS\], residual/);
  key(walk, "End");
  assert.match(readout(), /^5 of 5/);
  const least = labelled("weakest edges shown");
  least.value = "5";
  least.dispatchEvent(new page.window.Event("input"));
  assert.match(el.querySelector(".nx-trace .nx-sentence").textContent, /4 edges are shown/);
  change(labelled("logit of which class"), "0");
  assert.match(el.querySelector(".nx-trace .nx-sentence").textContent, /The logit of A changes by \+0\.5/);
});

test("a trace that fails is not asked for by itself again; without a model the page says so", async () => {
  await openExamples({ panel: "trace" });
  await model.reply("trace", { error: "no blocks found" });
  assert.match(el.querySelector("[role=alert]").textContent, /the trace of component 0 did not work: no blocks found/);
  model.set("text", "");
  assert.equal(model.asked("trace").length, 1);
  mouse(button("Retry"), "click");
  assert.equal(model.asked("trace").length, 2);
  cleanup();
  await openExamples({ panel: "trace" }, { live: false });
  assert.equal(model.asked("trace").length, 0);
  assert.match(labelled("trace").textContent, /needs the model, and this page has none/);
});

test("hostile texts stay texts everywhere", async () => {
  const rows = HOSTILE.map((text, i) => row(i, 0.5, text, [token(text, 0.5), token(text, -0.2)], { gold: text, prediction: text }));
  const hostile = (found) => ({
    ...found, top: rows, enriched: [{ column: HOSTILE[0], values: [{ ...found.enriched[0].values[0], name: HOSTILE[5] }] }],
  });
  await openExamples({ labels: { 0: HOSTILE[0], 1: HOSTILE[2] }, notes: { 0: HOSTILE[1] }, selection: [0], text: HOSTILE[4] }, { classes: [HOSTILE[0], HOSTILE[5]] }, hostile);
  model.set("panel", "trace");
  await model.reply("trace", { answer: { ...TRACE, tokens: [HOSTILE[0], HOSTILE[5], HOSTILE[2]], classes: [HOSTILE[0], HOSTILE[5]] } });
  model.set("panel", "text");
  await model.reply("text", { answer: { ...ANSWER, prediction: HOSTILE[5], tokens: { 1: { tokens: HOSTILE.map((text) => token(text, 0.1)), aside: [{ name: HOSTILE[0], share: 1 }] } }, neighbours: rows } });
  assert.equal(el.querySelectorAll("img, script").length, 0);
  assert.ok(!/[\0\u202e\u2066]/.test(el.textContent));
  for (const node of el.querySelectorAll(".nx-token, .nx-text, option, .nx-link, .nx-chip, .nx-tracescroll text, .nx-enriched th")) assert.ok(node.textContent.length <= 4100);
});

test("many looks leave neither listeners nor nodes behind", async () => {
  await openExamples();
  for (const panel of ["text", "trace", "examples"]) model.set("panel", panel);
  await model.reply("trace", { answer: TRACE });
  const look = async (number) => {
    model.set("component", number % 2);
    const pending = model.asked("component").at(-1);
    if (pending.component === number % 2 && number < 2) await model.reply("component", { answer: detail(number % 2) });
    for (const node of labelled("which examples").children) mouse(node, "click");
    model.set("pinned", (number + 1) % 2);
    model.set("labels", { 0: `name ${number}` });
    await settle();
  };
  for (let i = 0; i < 6; i++) await look(i);
  const [nodes, listening] = [el.querySelectorAll("*").length, model.listening()];
  for (let i = 6; i < 40; i++) await look(i);
  assert.ok(Math.abs(el.querySelectorAll("*").length - nodes) <= 20);
  assert.equal(model.listening(), listening);
  cleanup();
  assert.equal(model.listening(), 0);
});
