import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { inventEdit, pack } from "../dev/invent_edit.mjs";
import { curvePath, klScales, klTicks, strengthTicks } from "../src/curve.js";
import explorer from "../src/explorer.js";
import { createJudge, kl, likeliest, logSigmoid, logSoftmax, meanOf, probabilities, reader, stepped } from "../src/judge.js";
import { unpack } from "../src/packed.js";
import { keyed, rounded, toPlace, toStrength, written } from "../src/slide.js";
import { bracket, classesToShow, covers, createGrid, roughAt } from "../src/sweep.js";
import { fakeModel, openPage, settle, smallData } from "./page.js";

const RANGE = { low: -1, high: 1, step: 0.01 };
const close = (a, b, tolerance, said) => assert.ok(Math.abs(a - b) <= tolerance, `${said ?? ""} ${a} is not ${b} within ${tolerance}`);
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

// ------------------------------------------------------------------------------------------------------------ pure functions

test("packed numbers come back, each example on its own scale", () => {
  const rows = [[1e-3, -2e-3, 0], [30, -7, 12.5], [0, 0, 0]];
  const back = unpack(pack(rows, [3]));
  rows.forEach((row, i) => row.forEach((value, c) => close(back[i][c], value, Math.max(...row.map(Math.abs)) / 32767)));
  assert.deepEqual(unpack({ shape: [1, 2], scale: [0.5], data: Buffer.from([0xff, 0x7f, 0x00, 0x80]).toString("base64") }).map((row) => [...row]), [[16383.5, -16384]]);
});

test("log-softmax keeps what softmax would round away", () => {
  const log = logSoftmax([0, 800, -800]);
  assert.deepEqual(log.map(Math.round), [-800, 0, -1600]);
  close(logSoftmax([40, 0])[0], -Math.exp(-40), 1e-17);
  close(logSigmoid(-745), -745, 1e-9);
  close(logSigmoid(40), -Math.exp(-40), 1e-17);
});

test("KL of a confident prediction is right at both ends: where it barely moves, and where it is turned over", () => {
  // p = 1 - 4e-18: 1 in float64; KL of a step d in the losing logit is q (d e^d - e^d + 1), q = e^-40
  const q = Math.exp(-40);
  for (const d of [1e-3, 1, 10]) {
    const exact = q * (d * Math.exp(d) - Math.expm1(d));
    close(kl([0, -40 + d], [0, -40], "categorical") / exact, 1, 1e-6);
  }
  close(kl([0, 60], [0, -40], "categorical"), 40, 1e-12);
  assert.equal(kl([3, 1, 2], [3, 1, 2], "categorical"), 0);
  close(kl([5, 6, 7], [1, 2, 3], "categorical"), 0, 1e-15, "a constant added to all logits says nothing");
});

test("KL of small steps is half the curvature", () => {
  const z = [1, 0, -2];
  const dz = [0.5, -1, 2];
  const p = probabilities(z, "categorical");
  const centre = p.reduce((sum, one, c) => sum + one * dz[c], 0);
  const curvature = p.reduce((sum, one, c) => sum + one * (dz[c] - centre) ** 2, 0);
  for (const s of [1e-2, 1e-4, 1e-6]) close(kl(z.map((one, c) => one + s * dz[c]), z, "categorical") / (0.5 * curvature * s * s), 1, Math.max(2 * s, 1e-3));
});

test("independent labels: sigmoids, KL added up, and any label that turns is a change", () => {
  const [after, before] = [[2, -1], [-3, -1]];
  const p = (x) => 1 / (1 + Math.exp(-x));
  const one = (a, b) => p(a) * Math.log(p(a) / p(b)) + (1 - p(a)) * Math.log((1 - p(a)) / (1 - p(b)));
  close(kl(after, before, "bernoulli"), one(2, -3), 1e-12);
  close(probabilities(after, "bernoulli")[0], p(2), 1e-15);
  const { differ, said } = reader("bernoulli", ["a", "b"]);
  assert.equal(differ([0.6, 0.2], [0.4, 0.2]), true);
  assert.equal(differ([0.6, 0.2], [0.9, 0.4]), false);
  assert.equal(said([0.6, 0.7]).name, "a + b");
  assert.equal(said([0.4, 0.3]).name, "none");
  close(said([0.6, 0.3]).probability, 0.42, 1e-12);
});

test("anything else is no prediction where few of many classes are kept", () => {
  const { differ, said } = reader("categorical", ["guess 1", "guess 2", "anything else"]);
  assert.equal(said([0.2, 0.1, 0.7]).name, "guess 1");
  assert.equal(differ([0.2, 0.1, 0.7], [0.5, 0.1, 0.4]), false);
  assert.equal(reader("categorical", ["x", "anything else"]).said([0.2, 0.8]).name, "anything else", "a class may well be called so");
  assert.equal(likeliest([0.1, 0.9]), 1);
});

test("the preview adds steps up and judges the two sets apart", () => {
  const rows = [4, 9, 2, 7, 5];
  const edit = inventEdit({ rows, nTop: 2, classes: 3 });
  const judge = createJudge(edit.preview, ["A", "B", "C"]);
  const other = edit.dz.map((row) => row.map((value) => -2 * value + 1));
  const moved = stepped(judge.logits, [{ derivative: judge.derivative, strength: 0.5 }, { derivative: other, strength: 0.25 }]);
  const exact = edit.z.map((row, i) => row.map((z, c) => z + 0.5 * edit.dz[i][c] + 0.25 * other[i][c]));
  exact.forEach((row, i) => row.forEach((value, c) => close(moved[i][c], value, 2e-3)));
  const far = judge.judge(stepped(judge.logits, [{ derivative: judge.derivative, strength: 3 }]));
  const at = (i) => edit.z[i].map((z, c) => z + 3 * edit.dz[i][c]);
  close(far.kl_top, mean([0, 1].map((i) => kl(at(i), edit.z[i], "categorical"))), 1e-2);
  close(far.kl_baseline, mean([2, 3, 4].map((i) => kl(at(i), edit.z[i], "categorical"))), 1e-2);
  assert.deepEqual(far.mean_top, meanOf([far.of(4), far.of(9)]));
  assert.equal(far.of(123), undefined);
  assert.equal(far.flips_top, mean([0, 1].map((i) => Number(likeliest(at(i)) !== likeliest(edit.z[i])))));
  assert.equal(judge.still.kl_top, 0);
  assert.equal(judge.still.flips_baseline, 0);
});

for (const family of ["categorical", "bernoulli"]) {
  test(`interpolation passes through every run, leaves zero as the preview does, and is exact for a parabola near zero (${family})`, () => {
    const edit = inventEdit({ rows: [0, 1, 2, 3, 4, 5], nTop: 3, classes: 3, family });
    const judge = createJudge(edit.preview, ["A", "B", "C"]);
    const kls = (moved, still) => [mean(moved.slice(0, 3).map((z, i) => kl(z, still[i], family))), mean(moved.slice(3).map((z, i) => kl(z, still[i + 3], family)))];
    const sweep = edit.sweep([-1, -0.3, 0, 0.3, 1], kls);
    const grid = createGrid(sweep, judge);
    sweep.strengths.forEach((s, at) => {
      assert.equal(grid.judge(s).kl_top, sweep.kl_top[at], "at a run its own figures");
      edit.truth(s).forEach((z, i) => probabilities(grid.at(s)[i], family).forEach((p, c) => close(p, probabilities(z, family)[c], 2e-3)));
    });
    for (const s of [-0.2, -0.05, 0.01, 0.15, 0.29]) close(grid.judge(s).kl_top, kls(edit.truth(s), edit.z)[0], 0.01 * kls(edit.truth(s), edit.z)[0] + 1e-5);
    const tiny = grid.judge(1e-3).kl_top;
    close(tiny / judge.judge(stepped(judge.logits, [{ derivative: judge.derivative, strength: 1e-3 }])).kl_top, 1, 0.02);
    for (const row of grid.judge(0.7).mean_top ? [0, 1, 2].map((r) => grid.judge(0.7).of(r)) : []) if (family === "categorical") close(row.reduce((a, b) => a + b, 0), 1, 1e-12);
  });
}

const rough = {
  strengths: [-1, -0.5, 0, 1], kl_top: [4, 1, 0, 1], kl_baseline: [0.4, 0.1, 0, 0.1], kl_random: [0.04, 0.01, -1e-9, 0.01], n_top: 2, n_baseline: 2, logits: null, rows: [7, 3],
  probabilities: [[[0, 1], [0.2, 0.8]], [[0.5, 0.5], [0.4, 0.6]], [[0.9, 0.1], [0.8, 0.2]], [[1, 0], [1, 0]]],
};

test("without logits probabilities are interpolated: they meet the grid, stay distributions, and never leave the ends", () => {
  assert.deepEqual(roughAt(rough, -0.5).of(3), [0.4, 0.6]);
  const between = roughAt(rough, -0.75);
  assert.deepEqual(between.of(7).map((p) => Math.round(100 * p)), [25, 75]);
  close(between.kl_top, 2.25, 1e-12, "the root of KL is linear: (2 + 1) / 2 squared");
  close(between.of(3)[0] + between.of(3)[1], 1, 1e-12);
  assert.deepEqual(roughAt(rough, -3).of(7), [0, 1]);
  assert.equal(roughAt(rough, 0).kl_random, 0);
  assert.equal(roughAt(rough, 0).flips_top, null);
  assert.deepEqual(bracket([-1, 0, 1], 0.25), { low: 1, high: 2, t: 0.25 });
  assert.deepEqual(bracket([-0.3, 0, 0.3], 0.1 + 0.2), { low: 2, high: 2, t: 0 });
  assert.equal(covers([-0.3, 0], -0.3), true);
  assert.equal(covers([-0.3, 0], 0.1), false);
});

test("which classes get a line: what becomes likely anywhere, in the order before the edit", () => {
  assert.deepEqual(classesToShow([0.7, 0.2, 0.05, 0.05], [[0.1, 0.1, 0.8, 0]], 2), [0, 2]);
  assert.deepEqual(classesToShow([0.2, 0.8], [], 5), [1, 0]);
});

test("the slider's scale: zero in the middle, there and back, and keys that always move", () => {
  assert.equal(toPlace(0, RANGE), 0);
  assert.equal(toPlace(1, RANGE), 1);
  assert.equal(toPlace(-1, RANGE), -1);
  assert.ok(toPlace(0.05, RANGE) > 0.2, "what a preview covers is no hair's breadth");
  for (const s of [-1, -0.55, -0.3, -0.07, 0.012, 0.15, 0.99]) assert.equal(toStrength(toPlace(s, RANGE), RANGE), s);
  assert.equal(toStrength(0.01, RANGE), 0, "zero can be hit");
  assert.equal(rounded(0.0449, RANGE), 0.045);
  assert.equal(rounded(-0.2449, RANGE), -0.24);
  for (const start of [-1, -0.2, -0.1, -0.09, 0, 0.045, 0.1, 0.99]) {
    const next = keyed("ArrowRight", start, RANGE);
    close(next, start + 0.01, 1e-9);
    close(keyed("ArrowLeft", next, RANGE), start, 1e-9);
  }
  assert.equal(keyed("ArrowUp", 1, RANGE), 1);
  assert.equal(keyed("PageDown", 0, RANGE), -0.05);
  assert.equal(keyed("PageDown", -0.07, RANGE), -0.15);
  assert.equal(keyed("PageUp", 0.6, RANGE), 1);
  assert.equal(keyed("Home", 0.6, RANGE), -1);
  assert.equal(keyed("a", 0.6, RANGE), null);
  assert.equal(written(-0.3, RANGE), "\u22120.30");
  assert.equal(written(0.045, RANGE), "+0.045");
});

test("the KL plot: root scale, the slider's places, ends of the range, ticks apart", () => {
  const scales = klScales([4, 0.1, 0], RANGE, { left: 0, right: 100, top: 0, bottom: 80 });
  assert.equal(scales.x(0), 50);
  assert.equal(scales.x(-1), 0);
  assert.equal(scales.y(4), 0);
  assert.equal(scales.y(1), 40);
  assert.equal(curvePath([-1, 0], [4, 0], scales), "M0.0 0.0L50.0 80.0");
  const ticks = klTicks(scales, 15);
  assert.ok(ticks.includes(0) && ticks.length >= 3);
  ticks.slice(1).forEach((tick, i) => assert.ok(scales.y(ticks[i]) - scales.y(tick) >= 15));
  const stops = strengthTicks(scales, RANGE, 15);
  assert.ok([-1, 0, 1].every((end) => stops.includes(end)) && stops.length > 3);
  stops.slice(1).forEach((stop, i) => assert.ok(scales.x(stop) - scales.x(stops[i]) >= 15));
});

// ------------------------------------------------------------------------------------------------------------ in the page

let page, data, model, el, cleanup, edit;
const CLASSES = 6;

const labelled = (name, scope = el) => [...scope.querySelectorAll("[aria-label]")].find((node) => node.getAttribute("aria-label") === name);
const button = (text, scope = el) => [...scope.querySelectorAll("button")].find((node) => node.textContent === text);
const key = (node, name, type = "keydown") => node.dispatchEvent(new page.window.KeyboardEvent(type, { key: name, bubbles: true, cancelable: true }));
const fire = (node, type) => node.dispatchEvent(new page.window.Event(type, { bubbles: true }));
const slide = (node, strength, release = true) => {
  node.value = String(toPlace(strength, RANGE));
  fire(node, "input");
  if (release) fire(node, "change");
};
const source = () => el.querySelector(".nx-source").textContent;
const figures = () => el.querySelector(".nx-figures").textContent;
const pause = () => new Promise((resolve) => setTimeout(resolve, 170));
const kls = (moved, still) => [mean(moved.slice(0, edit.preview.n_top).map((z, i) => kl(z, still[i], "categorical"))), 0.01];

/** A detail of component 0 as far as it is known: with a preview, and a sweep over some strengths. */
const known = (strengths, more = {}) => ({ ...data.details[0], preview: edit.preview, along: {}, sweep: strengths && edit.sweep(strengths, kls), unavailable: "", ...more });

async function open(panels = ["components", "lab"], change = () => {}) {
  data = smallData();
  data.traits.panels = panels;
  const top = data.details[0].top.map(({ row }) => row);
  edit = inventEdit({ rows: [...top, 1, 2, 3].filter((row, i, all) => all.indexOf(row) === i), nTop: top.length, classes: CLASSES });
  change(data);
  model = fakeModel(data.traits);
  el = page.document.body.appendChild(page.document.createElement("div"));
  cleanup = explorer.render({ model, el });
  await settle();
}

async function tell(ask, message) {
  const { id } = model.asked(ask).at(-1);
  model.tell("msg:custom", { id, ...message }, []);
  await settle();
}
const partial = (detail, done = 3) => tell("component", { progress: { done, total: 14, note: "running" }, partial: detail });

beforeEach(() => { page = openPage(); });

test("the source line goes from preview to interpolated to computed", async () => {
  await open();
  const slider = labelled("strength");
  assert.equal(slider.disabled, true);
  await partial(known(null));
  assert.equal(slider.disabled, false, "the preview is enough to turn it");
  assert.match(source(), /^original model/);
  slide(slider, -0.2, false);
  assert.equal(model.get("strength"), 0);
  assert.equal(model.asked("strength").length, 0, "no flood of requests while dragging");
  assert.match(source(), /^first-order preview: softmax.* not known yet/);
  assert.ok([...labelled("top examples").children].every((row) => row.textContent.includes("→")));
  await partial(known([-0.3, 0]));
  assert.match(source(), /^interpolated/);
  slide(slider, 0.2, false);
  assert.match(source(), /^first-order preview/, "the model was run on the other side only");
  await partial(known([-0.3, 0, 0.3]));
  assert.match(source(), /^interpolated/, "the grid grew under the thumb");
  slide(slider, 0.3, false);
  assert.match(source(), /^computed/);
  slide(slider, -0.2);
  assert.equal(model.get("strength"), -0.2);
  assert.match(source(), /^interpolated.*let go/);
  assert.match(el.textContent, /running the model with component 0 at −0\.20/);
  assert.deepEqual({ ...model.asked("strength").at(-1), id: 0 }, { id: 0, ask: "strength", component: 0, strengths: { 0: -0.2 } });
  const uniform = edit.preview.rows.map(() => Array(CLASSES).fill(1 / CLASSES));
  await model.reply("strength", { answer: { strengths: { 0: -0.2 }, kl_top: 1.5, kl_baseline: 0.3, rows: edit.preview.rows, probabilities: uniform } });
  assert.match(source(), /^computed: the model was really run at this strength/);
  assert.match(figures(), /top 1\.50 · others 0\.30 · ratio 5\.0/);
  slide(slider, 0);
  assert.match(source(), /^original/);
  slide(slider, -0.2);
  assert.match(source(), /^computed/, "an answer is kept");
  assert.equal(model.asked("strength").length, 1);
});

test("a strength of the grid is not run again", async () => {
  await open();
  await model.reply("component", { answer: known([-1, -0.3, 0, 0.3, 1]) });
  model.set("strength", -0.3);
  assert.match(source(), /^computed/);
  assert.equal(model.asked("strength").length, 0);
});

test("the trusted range is a band under the track, and said", async () => {
  await open();
  const band = el.querySelector(".nx-band");
  await partial(known([-0.3, 0, 0.3]));
  assert.equal(band.hidden, true);
  await model.reply("component", { answer: known([-0.3, 0, 0.3], { preview: { ...edit.preview, trusted: [-0.04, 0.09] } }) });
  assert.equal(band.hidden, false);
  close(Number(band.style.getPropertyValue("--from")), (1 + toPlace(-0.04, RANGE)) / 2, 1e-9);
  assert.match(band.title, /from −0\.04 to \+0\.09 .* a tenth of the true KL/);
  assert.match(labelled("turn it").textContent, /grey band: .*−0\.04 to \+0\.09/);
  const slider = labelled("strength");
  slide(slider, 0.5, false);
  assert.match(source(), /^first-order preview: beyond −0\.04 to \+0\.09 it is off by more/);
});

test("keys step, are said, and run the model when they are let go", async () => {
  await open();
  await model.reply("component", { answer: known([-0.3, 0, 0.3]) });
  const slider = labelled("strength");
  key(slider, "ArrowLeft");
  key(slider, "ArrowLeft");
  assert.equal(model.get("strength"), 0);
  assert.equal(slider.getAttribute("aria-valuetext"), "−0.02");
  key(slider, "ArrowLeft", "keyup");
  assert.equal(model.get("strength"), -0.02);
  key(slider, "PageDown");
  fire(slider, "blur");
  assert.equal(model.get("strength"), -0.05);
  key(slider, "End");
  key(slider, "End", "keyup");
  assert.equal(model.get("strength"), 1);
});

test("the box takes exact numbers, keeps to the range, and ignores nonsense", async () => {
  await open();
  await model.reply("component", { answer: known([-0.3, 0, 0.3]) });
  const box = labelled("strength value");
  const type = (text) => { box.value = text; fire(box, "input"); };
  type("-0.255");
  assert.equal(model.get("strength"), 0);
  key(box, "Enter");
  assert.equal(model.get("strength"), -0.255);
  assert.equal(box.value, "-0.255");
  type("7");
  key(box, "Enter");
  assert.equal(model.get("strength"), 1);
  assert.equal(box.value, "1.00");
  type("");
  key(box, "Enter");
  assert.equal(model.get("strength"), 1);
  type("0.3");
  key(box, "Escape");
  assert.equal(box.value, "1.00");
  labelled("reset strength to 0").click();
  assert.equal(model.get("strength"), 0);
  assert.equal(labelled("strength").value, "0");
});

test("commits in a row: the first is run at once, of the rest the last", async () => {
  await open();
  await model.reply("component", { answer: known([-0.3, 0, 0.3]) });
  for (const s of [0.1, 0.11, 0.12, 0.13]) model.set("strength", s);
  assert.equal(model.asked("strength").length, 1);
  assert.equal(model.asked("cancel").length, 1, "what is overtaken is cancelled at once");
  await pause();
  assert.deepEqual(model.asked("strength").map(({ strengths }) => strengths[0]), [0.1, 0.13]);
  const stale = model.asked("strength")[0].id;
  model.tell("msg:custom", { id: stale, answer: { strengths: { 0: 0.1 }, kl_top: 9, kl_baseline: 1, rows: [], probabilities: [] } }, []);
  await settle();
  assert.doesNotMatch(figures(), /9\.00/);
});

test("a failed run says so in place, keeps the picture, and can be tried again", async () => {
  await open();
  await model.reply("component", { answer: known([-0.3, 0, 0.3]) });
  model.set("strength", -0.2);
  await model.reply("strength", { error: "out of memory" });
  assert.match(labelled("turn it").querySelector("[role=alert]").textContent, /out of memory/);
  assert.match(source(), /^interpolated/);
  await pause();
  button("Retry", labelled("turn it")).click();
  assert.equal(model.asked("strength").length, 2);
});

test("a run can be cancelled", async () => {
  await open();
  await model.reply("component", { answer: known([-0.3, 0, 0.3]) });
  model.set("strength", -0.2);
  button("Cancel", labelled("turn it")).click();
  await settle();
  assert.equal(model.asked("cancel").at(-1).id, model.asked("strength").at(-1).id);
  assert.match(labelled("turn it").textContent, /cancelled/);
});

test("an older profile: strengths alone, and a live model is asked for the preview", async () => {
  await open();
  const old = { ...data.details[0], sweep: { ...data.details[0].sweep, logits: null } };
  delete old.preview;
  await model.reply("component", { answer: old });
  slide(labelled("strength"), -0.55, false);
  assert.match(source(), /^interpolated/);
  assert.deepEqual({ ...model.asked("preview").at(-1), id: 0 }, { id: 0, ask: "preview", component: 0, along: 0 });
  await model.reply("preview", { answer: edit.preview });
  assert.match(source(), /^interpolated/, "between runs the truth is nearer than the first order");
  const { probabilities, strengths } = old.sweep;
  model.set("strength", -0.6);
  assert.match(source(), /^computed/);
  const after = [...labelled("predictions before and after").children].map((row) => row.lastElementChild.textContent);
  const expected = meanOf(probabilities[strengths.indexOf(-0.6)]);
  assert.ok(after.includes(`${Math.round(100 * Math.max(...expected))}\u202f%`));
});

test("without a model nothing is asked, and what is shown says so", async () => {
  await open(["components"], (all) => { all.traits.overview.live = false; });
  await model.reply("component", { answer: known([-0.3, 0, 0.3]) });
  model.set("strength", -0.2);
  assert.match(source(), /^interpolated: .* in the notebook it can be run/);
  model.set("others", { 2: 0.3 });
  assert.equal(model.asked("strength").length + model.asked("preview").length, 0);
  assert.match(source(), /^not known: this page has no model, and how these examples respond to component 2 was not saved/);
  assert.match(figures(), /top – · others –/);
  assert.ok([...labelled("top examples").children].every((row) => !row.textContent.includes("→")), "no change is claimed");
});

test("without a model several components add up where their responses were saved", async () => {
  await open(["lab"], (all) => { all.traits.overview.live = false; });
  const along = { 2: pack(edit.dz.map((row) => row.map((value) => -value)), [CLASSES]) };
  await model.reply("component", { answer: known(null, { along }) });
  model.set("strength", 0.4);
  assert.doesNotMatch(figures(), /top 0 /);
  model.set("others", { 2: 0.4 });
  assert.match(source(), /^first-order preview: responses to component 2, added to component 0/);
  assert.match(figures(), /KL top (0|<0\.001) /, "one undoes the other");
});

test("the lab: sliders are added and removed, all are run together, reset puts them back", async () => {
  await open(["lab"]);
  await model.reply("component", { answer: known([-0.3, 0, 0.3]) });
  const add = labelled("turn another component too");
  assert.ok(![...add.options].some((option) => option.value === "0"), "the one in focus has a slider already");
  add.value = "2";
  fire(add, "change");
  assert.deepEqual(model.get("others"), { 2: 0 });
  assert.deepEqual({ ...model.asked("preview").at(-1), id: 0 }, { id: 0, ask: "preview", component: 0, along: 2 });
  const second = labelled("strength of component 2");
  slide(second, 0.3, false);
  assert.match(source(), /^not known: the response to component 2 is on its way/);
  await model.reply("preview", { answer: { ...edit.preview, along: 2 } });
  assert.equal(labelled("strength of component 2"), second, "what is dragged is not replaced");
  assert.match(source(), /^first-order preview: responses to component 2; let go/);
  slide(second, 0.3);
  slide(labelled("strength"), -0.2);
  await pause();
  assert.deepEqual(model.asked("strength").at(-1).strengths, { 0: -0.2, 2: 0.3 });
  const flat = edit.preview.rows.map(() => [0, 0, 0, 0, 0, 1]);
  await model.reply("strength", { answer: { strengths: { 0: -0.2, 2: 0.3 }, kl_top: 2, kl_baseline: 1, rows: edit.preview.rows, probabilities: flat } });
  assert.match(source(), /^computed: .*these strengths/);
  const top = labelled("top examples before and after");
  assert.ok([...top.children].some((row) => /→ LOC 100/.test(row.textContent)));
  assert.match(labelled("top examples").querySelector("h3").textContent, /changed/);
  assert.ok(labelled("others").querySelector("[role=table]").children.length > 0);
  labelled("reset all strengths to 0").click();
  assert.equal(model.get("strength"), 0);
  assert.deepEqual(model.get("others"), { 2: 0 });
  labelled("remove component 2").click();
  assert.deepEqual(model.get("others"), {});
  assert.equal(labelled("strength of component 2"), undefined);
});

test("the lab: another component in focus changes places, with its strength", async () => {
  await open(["lab"], (all) => Object.assign(all.traits, { strength: -0.2, others: { 3: 0.4 } }));
  await model.reply("component", { answer: known([-0.3, 0, 0.3]) });
  labelled("put component 3 in focus").click();
  assert.equal(model.get("component"), 3);
  assert.equal(model.get("strength"), 0.4);
  assert.deepEqual(model.get("others"), { 0: -0.2 });
  assert.ok(model.asked("cancel").some(({ id }) => id === model.asked("preview")[0].id), "what nobody waits for any more is cancelled");
  const focus = labelled("component in focus, whose examples are judged");
  assert.equal(focus.value, "3");
  focus.value = "1";
  fire(focus, "change");
  assert.equal(model.get("component"), 1);
});

test("the lab: both signs as a table, no more sliders than directions are kept, texts of others on demand", async () => {
  await open(["lab"], (all) => Object.assign(all.traits, { others: { 1: 0, 2: 0, 3: 0 } }));
  await model.reply("component", { answer: known([-1, -0.3, 0, 0.3, 1]) });
  const table = labelled("both signs").querySelector("table");
  assert.deepEqual([...table.tBodies[0].rows].map((row) => row.cells[0].textContent), ["0.30", "1.00"]);
  assert.equal(table.tBodies[0].rows[0].cells.length, 11);
  assert.equal(labelled("turn another component too").disabled, true);
  assert.match(el.textContent, /at most 4 at once/);
  const wanted = model.asked("examples").at(-1).rows;
  assert.deepEqual(wanted, edit.preview.rows.slice(edit.preview.n_top));
  await model.reply("examples", { answer: wanted.map((row) => ({ ...data.examples[row], text: "<img src=x onerror=boom()>" })) });
  const others = labelled("others before and after");
  assert.match(others.textContent, /<img src=x/);
  assert.equal(others.querySelector("img"), null);
});

test("nothing is left behind", async () => {
  const { listeners, observers } = page.counts;
  await open(["components", "lab"], (all) => Object.assign(all.traits, { panel: "lab", others: { 1: 0.2 } }));
  await model.reply("component", { answer: known([-0.3, 0, 0.3]) });
  slide(labelled("strength"), 0.2);
  const nodes = el.querySelectorAll("*").length;
  for (let i = 0; i < 30; i++) slide(labelled("strength"), (i % 2 ? 1 : -1) * 0.2, false);
  assert.ok(Math.abs(el.querySelectorAll("*").length - nodes) < 20, "nothing piles up while a slider moves");
  cleanup();
  assert.equal(model.listening(), 0);
  assert.deepEqual(page.counts, { listeners, observers });
});
