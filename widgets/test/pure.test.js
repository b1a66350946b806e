import assert from "node:assert/strict";
import { test } from "node:test";
import { contrast, over, parseColour, readable, stripColours } from "../src/colour.js";
import { curvePath, klScales, klTicks } from "../src/curve.js";
import { headline } from "../src/headline.js";
import { aggregate, cellAt, columnRange, peak, stripCodes } from "../src/heatgrid.js";
import { histogramPath } from "../src/histogram.js";
import { shortKind } from "../src/kinds.js";
import { arrange, matches, renamed } from "../src/listing.js";
import { count, decimals, nats, percent, ratio, strength } from "../src/numbers.js";
import { explainedParts } from "../src/shares.js";
import { bracket, classesToShow, meanProbabilities, responseAt } from "../src/sweep.js";
import { largestShare, tokenOpacity, visibleText } from "../src/tokens.js";

const component = (number, more = {}) => ({
  component: number, label: `label ${number}`, share: 0.1, examples: 10, histogram: [], max_coefficient: 1, main_label: "DESC", purity: 1, fine: null, keywords: "", ...more,
});

test("numbers read as people write them", () => {
  assert.equal(percent(0.974), "97\u202f%");
  assert.equal(percent(0), "0\u202f%");
  assert.equal(percent(0.001), "<1\u202f%");
  assert.equal(percent(-0.125, 1), "\u221212.5\u202f%");
  assert.equal(count(2000), "2\u202f000");
  assert.equal(count(1234567), "1\u202f234\u202f567");
  assert.equal(strength(-0.3), "\u22120.30");
  assert.equal(strength(-0.001), "0.00");
  assert.equal(nats(0.0414), "0.041");
  assert.equal(nats(0.83), "0.83");
  assert.equal(nats(0.0002), "<0.001");
  assert.equal(ratio(0.83, 0.04), "21");
  assert.equal(ratio(0.83, 0), "–");
  assert.equal(decimals(0.01), 2);
  assert.equal(decimals(1), 0);
  assert.equal(decimals(0.05), 2);
});

test("colours are read, mixed and contrasted", () => {
  assert.deepEqual(parseColour(" 214, 96, 30"), [214, 96, 30]);
  assert.deepEqual(parseColour("#fff"), [255, 255, 255]);
  assert.deepEqual(parseColour("#1c2330"), [28, 35, 48]);
  assert.deepEqual(parseColour("rgb(1, 2, 3)"), [1, 2, 3]);
  assert.equal(parseColour("tomato"), null);
  assert.deepEqual(over([200, 0, 0], [0, 0, 100], 0.5), [100, 0, 50]);
  assert.ok(Math.abs(contrast([0, 0, 0], [255, 255, 255]) - 21) < 1e-9);
});

test("the text on every token colour of both themes is readable", () => {
  const themes = [
    { paper: [255, 255, 255], ink: [28, 35, 48], hues: [[214, 96, 30], [36, 104, 190]] },
    { paper: [21, 24, 30], ink: [230, 233, 239], hues: [[255, 150, 80], [110, 170, 255]] },
  ];
  for (const { paper, ink, hues } of themes) for (const hue of hues) for (let opacity = 0; opacity <= 1; opacity += 0.05) {
    const ground = over(hue, paper, opacity);
    assert.ok(contrast(readable(ground, ink), ground) >= 4.5, `${hue} at ${opacity}`);
  }
});

test("more than eight strip names: the eight commonest keep a colour", () => {
  const names = Array.from({ length: 10 }, (_, i) => `n${i}`);
  const codes = names.flatMap((_, i) => Array(i === 2 || i === 5 ? 1 : 5).fill(i));
  const colours = stripColours(names, codes);
  assert.equal(colours[2], -1);
  assert.equal(colours[5], -1);
  assert.equal(new Set(colours.filter((c) => c >= 0)).size, 8);
  assert.deepEqual(stripColours(["a", "b"], [0, 1]), [0, 1]);
});

test("token opacity is logarithmic and asides do not set the scale", () => {
  assert.equal(tokenOpacity(0, 1), 0);
  assert.ok(Math.abs(tokenOpacity(0.3, 0.3) - 1) < 1e-12);
  assert.ok(Math.abs(tokenOpacity(-0.15, 0.3) - (0.05 + 0.95 * Math.log10(5.5))) < 1e-12);
  assert.equal(largestShare([{ tokens: [{ share: 0.1 }, { share: -0.2 }], aside: [{ share: 0.6 }] }, { tokens: null, aside: [] }]), 0.2);
  assert.equal(visibleText("a\nb"), "a↵b");
});

test("search finds every word, numbers, given and default names", () => {
  const why = component(14, { label: "why · does", keywords: "candle wick desc" });
  assert.ok(matches(why, {}, "WHY candle"));
  assert.ok(!matches(why, {}, "why novel"));
  assert.ok(matches(why, {}, "14"));
  assert.ok(!matches(component(140), {}, "14 0x"));
  assert.ok(matches(why, { 14: "reasons" }, "reason"));
  assert.ok(matches(why, { 14: "reasons" }, "does"));
});

test("sorting: each key, both ways, number breaks ties", () => {
  const all = [component(2, { share: 0.2, examples: 5, label: "b" }), component(0, { share: 0.2, examples: 9, label: "c" }), component(1, { share: 0.5, examples: 7, label: "a", purity: 0.5 })];
  const order = (sort, descending) => arrange(all, {}, { query: "", sort, descending }).map((c) => c.component);
  assert.deepEqual(order("share", true), [1, 0, 2]);
  assert.deepEqual(order("number", false), [0, 1, 2]);
  assert.deepEqual(order("name", false), [1, 2, 0]);
  assert.deepEqual(order("examples", true), [0, 1, 2]);
  assert.deepEqual(order("purity", false), [1, 0, 2]);
  assert.deepEqual(arrange(all, { 0: "aa" }, { query: "", sort: "name", descending: false }).map((c) => c.component), [1, 0, 2]);
});

test("renaming: empty or default takes the entry out, others stay", () => {
  const labels = { 1: "one", 2: "two" };
  assert.deepEqual(renamed(labels, component(1), " uno "), { 1: "uno", 2: "two" });
  assert.deepEqual(renamed(labels, component(1), "  "), { 2: "two" });
  assert.deepEqual(renamed(labels, component(1), "label 1"), { 2: "two" });
  assert.deepEqual(labels, { 1: "one", 2: "two" });
});

test("the headline counts examples where it is known over how many", () => {
  const summary = component(14, { examples: 158, fine: { column: "fine_label", name: "REASON", share: 0.95, expected: 0.21 } });
  assert.equal(headline({ ...summary, counted: 20 }, true), "158 examples · 20 of 20 top examples are gold DESC; 19 of 20 REASON in fine_label (expected 4.2)");
  assert.equal(headline(summary, false), "158 examples · 100\u202f% of the top examples are predicted DESC; 95\u202f% REASON in fine_label (expected 21\u202f%)");
  assert.equal(headline(component(1, { examples: 1, main_label: "" }), null), "1 example");
});

const sweep = {
  strengths: [-1, -0.5, 0, 1], kl_top: [4, 1, 0, 1], kl_baseline: [0.4, 0.1, 0, 0.1], kl_random: [0.04, 0.01, -1e-9, 0.01], n_top: 2, n_baseline: 2,
  probabilities: [[[0, 1], [0.2, 0.8]], [[0.5, 0.5], [0.4, 0.6]], [[0.9, 0.1], [0.8, 0.2]], [[1, 0], [1, 0]]],
};

test("interpolation meets the grid, stays a distribution, and never leaves the ends", () => {
  assert.equal(responseAt(sweep, -0.5).computed, true);
  assert.equal(responseAt(sweep, -0.5 + 1e-9).computed, true);
  assert.deepEqual(responseAt(sweep, -0.5).probabilities, sweep.probabilities[1]);
  const between = responseAt(sweep, -0.75);
  assert.equal(between.computed, false);
  assert.deepEqual(between.probabilities[0].map((p) => Math.round(100 * p)), [25, 75]);
  assert.ok(Math.abs(between.kl_top - 2.25) < 1e-12, "the root of KL is linear: (2 + 1) / 2 squared");
  for (const row of between.probabilities) assert.ok(Math.abs(row[0] + row[1] - 1) < 1e-12);
  assert.deepEqual(responseAt(sweep, -3).probabilities, sweep.probabilities[0]);
  assert.equal(responseAt(sweep, -3).computed, false);
  assert.equal(responseAt(sweep, 0).kl_random, 0);
  assert.deepEqual(bracket([-1, 0, 1], 0.25), { low: 1, high: 2, t: 0.25 });
});

test("class means and which classes get a line", () => {
  assert.deepEqual(meanProbabilities([[1, 0], [0, 1]]), [0.5, 0.5]);
  const wide = { ...sweep, strengths: [-1, 0], probabilities: [[[0.1, 0.1, 0.8, 0]], [[0.7, 0.2, 0.05, 0.05]]] };
  assert.deepEqual(classesToShow(wide, 2), [0, 2], "a class that becomes likely is shown, in the order before the edit");
});

test("the KL plot: root scale, ends of the range, ticks apart", () => {
  const scales = klScales(sweep, { low: -1, high: 1 }, { left: 0, right: 100, top: 0, bottom: 80 });
  assert.equal(scales.x(0), 50);
  assert.equal(scales.y(4), 0);
  assert.equal(scales.y(1), 40);
  assert.equal(curvePath([-1, 0], [4, 0], scales), "M0.0 0.0L50.0 80.0");
  const ticks = klTicks(scales, 15);
  assert.ok(ticks.includes(0) && ticks.length >= 3);
  ticks.slice(1).forEach((tick, i) => assert.ok(scales.y(ticks[i]) - scales.y(tick) >= 15));
});

test("kinds get the short names of the field", () => {
  const pairs = { "attention query": "Q", "attention query key value": "QKV", "attention key": "K", "attention value": "V", "attention output": "O", "mlp in": "MLP in", "MLP out": "MLP out", "attention.self.query": "Q", "layer norm": "norm", something: "someth…" };
  for (const [kind, short] of Object.entries(pairs)) assert.equal(shortKind(kind, 7), short);
});

test("columns of the heatmap cover every example once and show the largest", () => {
  const seen = [];
  for (let c = 0; c < 3; c++) { const [from, to] = columnRange(c, 3, 7); for (let i = from; i < to; i++) seen.push(i); }
  assert.deepEqual(seen, [0, 1, 2, 3, 4, 5, 6]);
  const heat = Uint8Array.from([0, 9, 1, 0, 5, 5, 0, 2]);
  assert.deepEqual([...aggregate(heat, 4, [1, 0], 2)], [5, 2, 9, 1]);
  assert.equal(peak(heat, 4, 0, 0, 4), 1);
  assert.equal(peak(heat, 4, 1, 0, 2), 0);
  assert.deepEqual(stripCodes([0, 1, 1, 2, 2, 2], 2), [1, 2]);
  assert.equal(cellAt(-5, 100, 4), 0);
  assert.equal(cellAt(100, 100, 4), 3);
});

test("an occupied bin of a histogram is never invisible", () => {
  assert.equal(histogramPath([0, 0], 60, 16), "");
  assert.equal(histogramPath([100000, 1, 0], 60, 16).split("z").length - 1, 2);
});

test("the stacked bar fills the explained part", () => {
  const parts = explainedParts({ coefficients: [{ component: 3, value: 0.6 }, { component: 1, value: 0.2 }, { component: 2, value: 0.2 }], unexplained: 0.4 }, 2);
  assert.deepEqual(parts.map(({ component }) => component), [3, 1, null]);
  assert.ok(Math.abs(parts.reduce((sum, { share }) => sum + share, 0) - 0.6) < 1e-12);
  assert.deepEqual(explainedParts({ coefficients: [], unexplained: 1 }, 2), []);
});
