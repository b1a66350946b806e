// The bar of long work: what it says, and what its button does, in a page that hears and in one that does not.
import assert from "node:assert/strict";
import { mock, test } from "node:test";
import progress, { HEARD_WITHIN_MS, span, words } from "../src/progress.js";
import { fakeModel, openPage } from "./page.js";

const AT = { what: "Fishers", done: 310, total: 2000, units: "examples", note: "", left: 44.2, end: "" };

/** @param {Partial<typeof AT>} [at] */
function shown(at = {}) {
  const { document, counts } = openPage();
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"] });
  const model = fakeModel({ at: { ...AT, ...at } });
  const close = progress.render({ model, el: document.body });
  const find = (selector) => document.querySelector(`.npeff-progress ${selector}`);
  return { document, counts, model, close, find, cancel: find("button"), hint: find(".nx-hint") };
}

test.afterEach(() => mock.timers.reset());

test("times are said as people say them", () => {
  assert.deepEqual([0, 54.4, 59.6, 125, 3600, 4350, -3].map(span), ["0 s", "54 s", "1 min 0 s", "2 min 5 s", "1 h 0 min", "1 h 12 min", "0 s"]);
});

test("the words count, and the time left runs on between two messages", () => {
  assert.equal(words(AT, 0), "310 of 2000 examples · 44 s left");
  assert.equal(words(AT, 40), "310 of 2000 examples · 4 s left");
  assert.equal(words(AT, 400), "310 of 2000 examples · a moment left");
  assert.equal(words({ ...AT, left: null, note: "component 3" }, 4), "310 of 2000 examples · component 3");
  assert.equal(words({ ...AT, total: null, left: null, units: "iterations" }, 4), "310 iterations");
});

test("a bar with its value, and the clock goes on by itself", () => {
  const { find, cancel, close } = shown();
  const bar = find("[role=progressbar]");
  assert.deepEqual(["aria-label", "aria-valuenow", "aria-valuemax"].map((name) => bar.getAttribute(name)), ["Fishers", "310", "2000"]);
  assert.equal(bar.firstChild.style.width, "15.5%");
  assert.equal(cancel.getAttribute("aria-label"), "cancel Fishers");
  mock.timers.tick(2000);
  assert.match(find(".nx-words").textContent, /42 s left/);
  close();
});

test("work of unknown length has a bar without a value", () => {
  const { find, close } = shown({ total: null, left: null });
  assert.equal(find("[role=progressbar]").hasAttribute("aria-valuenow"), false);
  assert.ok(find(".nx-endless"));
  close();
});

test("cancel is sent once, answered, and says that the piece at hand is finished first", () => {
  const { model, cancel, hint, close } = shown();
  assert.deepEqual(model.sent, [{ ask: "hear" }]);
  model.tell("msg:custom", { heard: true });
  cancel.click();
  cancel.click();
  assert.deepEqual(model.sent.slice(1), [{ ask: "cancel" }]);
  assert.equal(cancel.disabled, true);
  model.tell("msg:custom", { heard: true });
  mock.timers.tick(10 * HEARD_WITHIN_MS);
  assert.match(hint.textContent, /stops when the piece at hand is done/);
  close();
});

test("a page that is not heard says what stops the work instead, and takes it back when it is heard after all", () => {
  const { model, cancel, hint, close } = shown();
  assert.equal(cancel.disabled, false);
  mock.timers.tick(HEARD_WITHIN_MS);
  assert.equal(cancel.disabled, true);
  assert.match(hint.textContent, /Interrupt button/);
  model.tell("msg:custom", { heard: true });
  assert.equal(cancel.disabled, false);
  assert.equal(hint.textContent, "");
  cancel.click();
  mock.timers.tick(HEARD_WITHIN_MS);
  assert.match(hint.textContent, /Interrupt button/);
  close();
});

test("without a kernel there is nothing to cancel", () => {
  const { document } = openPage();
  const model = fakeModel({ at: AT });
  model.send = () => { throw new Error("no comm"); };
  const close = progress.render({ model, el: document.body });
  assert.equal(document.querySelector("button").disabled, true);
  close();
});

test("the end is a line of text", () => {
  const { model, find, close } = shown();
  model.set("at", { ...AT, end: "Fishers: 2000 examples in 54 s" });
  assert.equal(find("b").textContent, "Fishers: 2000 examples in 54 s");
  for (const part of ["button", "[role=progressbar]", ".nx-words"]) assert.equal(find(part).hidden, true);
  close();
});

test("text is inert, and nothing stays behind", () => {
  const evil = "<img src=x onerror=alert(1)>";
  const { document, counts, model, close } = shown({ what: evil, note: evil, units: evil });
  assert.equal(document.querySelector("img"), null);
  close();
  assert.equal(model.listening(), 0);
  assert.equal(counts.listeners, 0);
  assert.equal(document.querySelector(".npeff-progress"), null);
});
