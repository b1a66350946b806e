import assert from "node:assert/strict";
import { test } from "node:test";
import { contrast, over, parseColour, readable } from "../src/colour.js";
import { headline } from "../src/headline.js";
import { histogramPath } from "../src/histogram.js";
import { shortKind } from "../src/kinds.js";
import { renamed } from "../src/listing.js";
import { count, decimals, nats, percent, ratio, strength } from "../src/numbers.js";
import { explainedParts } from "../src/shares.js";
import { tokenOpacity } from "../src/tokens.js";

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

test("kinds get the short names of the field", () => {
  const pairs = { "attention query": "Q", "attention query key value": "QKV", "attention key": "K", "attention value": "V", "attention output": "O", "mlp in": "MLP in", "MLP out": "MLP out", "attention.self.query": "Q", "layer norm": "norm", something: "someth…" };
  for (const [kind, short] of Object.entries(pairs)) assert.equal(shortKind(kind, 7), short);
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
