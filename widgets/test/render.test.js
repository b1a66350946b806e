import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import explorer from "../src/explorer.js";
import { fakeModel, openPage, settle, smallData } from "./page.js";

let page, data, model, el, cleanup;

const labelled = (name, scope = el) => [...scope.querySelectorAll("[aria-label]")].find((node) => node.getAttribute("aria-label") === name);
const options = () => [...labelled("components").children];
const option = (number) => options().find((node) => node.getAttribute("aria-label").startsWith(`component ${number}:`));
const rows = () => [...labelled("top examples").children];
const button = (text, scope = el) => [...scope.querySelectorAll("button")].find((node) => node.textContent === text);
const key = (node, name) => node.dispatchEvent(new page.window.KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
const fire = (node, type) => node.dispatchEvent(new page.window.Event(type, { bubbles: true }));
const mouse = (node, type, at = {}) => node.dispatchEvent(new page.window.MouseEvent(type, { bubbles: true, ...at }));
const type = (input, text) => { input.value = text; fire(input, "input"); };

async function open(change = () => {}) {
  data = smallData();
  change(data);
  model = fakeModel(data.traits);
  el = page.document.body.appendChild(page.document.createElement("div"));
  cleanup = explorer.render({ model, el });
  await settle();
}

async function openReady(change) {
  await open(change);
  await model.reply("component", { answer: data.details[0] });
}

beforeEach(() => { page = openPage(); });

test("clicking a component sets the trait and asks for its detail", async () => {
  await openReady();
  mouse(option(3), "click");
  assert.equal(model.get("component"), 3);
  assert.ok(model.saved > 0);
  assert.equal(model.asked("component").at(-1).component, 3);
  assert.equal(option(3).getAttribute("aria-selected"), "true");
  assert.equal(option(0).getAttribute("aria-selected"), "false");
});

test("arrows move the focus, Enter chooses, Home and End go to the ends", async () => {
  await openReady();
  const list = labelled("components");
  key(list, "Home");
  assert.equal(page.document.activeElement, options()[0]);
  key(list, "ArrowDown");
  assert.equal(page.document.activeElement, options()[1]);
  assert.equal(options()[1].tabIndex, 0);
  assert.equal(options().filter((node) => node.tabIndex === 0).length, 1);
  assert.equal(model.get("component"), 0, "moving does not choose: a detail may take seconds");
  key(list, "Enter");
  assert.equal(`component ${model.get("component")}`, options()[1].getAttribute("aria-label").split(":")[0]);
  key(list, "End");
  assert.equal(page.document.activeElement, options().at(-1));
});

test("a component set from Python moves all parts", async () => {
  await openReady();
  model.set("component", 2);
  await model.reply("component", { answer: data.details[2] });
  assert.equal(option(2).getAttribute("aria-selected"), "true");
  assert.match(el.querySelector(".nx-title").textContent, /^Component 2 ·/);
  assert.equal(rows().length, data.details[2].top.length);
  assert.ok(rows()[0].textContent.includes(data.details[2].top[0].text.split(" ")[0]));
  assert.ok(labelled("where it lives").querySelector("svg"));
});

test("answers are kept, and a superseded request is cancelled", async () => {
  await openReady();
  mouse(option(1), "click");
  const slow = model.asked("component").at(-1).id;
  mouse(option(2), "click");
  assert.ok(model.asked("cancel").some(({ id }) => id === slow));
  await settle();
  assert.match(el.querySelector(".nx-middle .nx-status").textContent, /^component 2 …/, "the new question is waited for, nothing is called cancelled");
  await model.reply("component", { answer: data.details[2] });
  model.tell("msg:custom", { id: slow, answer: data.details[1] }, []);
  await settle();
  assert.match(el.querySelector(".nx-title").textContent, /^Component 2 ·/);
  const before = model.asked("component").length;
  mouse(option(0), "click");
  assert.equal(model.asked("component").length, before, "component 0 is known already");
  assert.equal(rows().length, data.details[0].top.length);
});

test("search filters the list, and says when nothing is found", async () => {
  await openReady();
  const search = labelled("search");
  type(search, "how many");
  assert.ok(options().length > 0 && options().every((node) => /how · many/.test(node.getAttribute("aria-label"))));
  type(search, "no such thing");
  assert.equal(options().length, 0);
  assert.match(labelled("list of components").textContent, /searching/i, "words and examples are Python's");
  await new Promise((resolve) => setTimeout(resolve, 200));
  await model.reply("search", { answer: { components: [], why: [] } });
  assert.match(labelled("list of components").textContent, /No component has “no such thing”/);
  mouse(button("Show all"), "click");
  assert.equal(options().length, 6);
  assert.equal(search.value, "");
});

test("sorting by name and reversing", async () => {
  await openReady();
  const sort = labelled("sort components");
  sort.value = "number";
  fire(sort, "change");
  const numbers = () => options().map((node) => Number(/component (\d+)/.exec(node.getAttribute("aria-label"))[1]));
  assert.deepEqual(numbers(), [0, 1, 2, 3, 4, 5]);
  mouse(labelled("reverse order, now rising"), "click");
  assert.deepEqual(numbers(), [5, 4, 3, 2, 1, 0]);
});

test("renaming: F2 and Enter save, Escape keeps, empty restores the default", async () => {
  await openReady();
  const list = labelled("components");
  option(0).focus();
  key(list, "F2");
  let input = labelled("name of component 0");
  input.value = "reasons";
  key(input, "Enter");
  assert.deepEqual(model.get("labels"), { 0: "reasons" });
  assert.match(option(0).getAttribute("aria-label"), /^component 0: reasons/);
  assert.match(el.querySelector(".nx-title").textContent, /reasons/);

  mouse(option(0), "dblclick");
  input = labelled("name of component 0");
  input.value = "thrown away";
  key(input, "Escape");
  assert.deepEqual(model.get("labels"), { 0: "reasons" });
  assert.match(option(0).textContent, /reasons/);

  mouse(labelled("rename this component"), "click");
  input = labelled("name of component 0");
  input.value = "";
  key(input, "Enter");
  assert.deepEqual(model.get("labels"), {});
  assert.match(option(0).getAttribute("aria-label"), /^component 0: why · does/);
});

test("an answer that comes while a name is typed does not close the field", async () => {
  await open();
  mouse(labelled("rename this component"), "click");
  const input = labelled("name of component 0");
  input.value = "half a na";
  await model.reply("component", { answer: data.details[0] });
  assert.ok(input.isConnected);
  assert.equal(page.document.activeElement, input);
  assert.deepEqual(model.get("labels"), {});
});

test("clicking an example toggles it in the selection, by keyboard too", async () => {
  await openReady();
  const [first, second] = data.details[0].top;
  mouse(rows()[0], "click");
  assert.deepEqual(model.get("selection"), [first.row]);
  assert.equal(rows()[0].getAttribute("aria-selected"), "true");
  key(labelled("top examples"), "ArrowDown");
  key(labelled("top examples"), " ");
  assert.deepEqual(model.get("selection"), [first.row, second.row]);
  mouse(rows()[0], "click");
  assert.deepEqual(model.get("selection"), [second.row]);
});

test("picked examples: asked for, their parts choose components, Clear empties", async () => {
  await openReady();
  model.set("selection", [5, 7]);
  assert.deepEqual(model.asked("examples").at(-1).rows, [5, 7]);
  await model.reply("examples", { answer: [{ ...data.examples[5], coefficients: [{ component: 4, value: 0.5 }] }, data.examples[7]] });
  const list = labelled("picked examples");
  assert.match(list.textContent, new RegExp(data.examples[5].text.replace("?", "\\?")));
  mouse(list.querySelector(".nx-part"), "click");
  assert.equal(model.get("component"), 4);
  mouse(labelled("clear picked examples"), "click");
  assert.deepEqual(model.get("selection"), []);
  assert.equal(labelled("picked").hidden, true);
});

test("tabs: made when first shown, one at a time, by arrows too", async () => {
  await openReady();
  const tab = (name) => [...el.querySelectorAll("[role=tab]")].find((node) => node.textContent === name);
  assert.equal(labelled("all examples by components"), undefined);
  mouse(tab("Heatmap"), "click");
  assert.equal(model.get("panel"), "heatmap");
  assert.equal(tab("Heatmap").getAttribute("aria-selected"), "true");
  assert.ok(labelled("all examples by components"));
  const shown = () => [...el.querySelectorAll("[role=tabpanel]")].filter((node) => !node.hidden);
  assert.deepEqual(shown().map((node) => node.getAttribute("aria-labelledby")), [tab("Heatmap").id]);
  key(labelled("parts of the explorer"), "ArrowLeft");
  assert.equal(model.get("panel"), "table");
  assert.equal(page.document.activeElement, tab("Table"));
  assert.equal([...el.querySelectorAll("[role=tab]")].filter((node) => node.tabIndex === 0).length, 1);
  model.set("panel", "map");
  assert.equal(shown().length, 1);
});

test("one part alone has no tabs and needs no other", async () => {
  for (const panel of ["table", "heatmap", "map", "lab", "text", "trace", "examples", "layers"]) {
    await open(({ traits }) => Object.assign(traits, { panels: [panel], panel }));
    assert.equal(el.querySelector("[role=tablist]").hidden, true, panel);
    assert.ok(el.querySelector(".nx-panel > *"), panel);
    cleanup();
    el.remove();
  }
});

test("an error shows its message and Retry asks again", async () => {
  await open();
  await model.reply("component", { error: "the model has moved to another device" });
  const alert = el.querySelector("[role=alert]");
  assert.match(alert.textContent, /moved to another device/);
  mouse(button("Retry"), "click");
  assert.equal(model.asked("component").length, 2);
  await model.reply("component", { answer: data.details[0] });
  assert.equal(el.querySelector("[role=alert]"), null);
  assert.equal(rows().length, data.details[0].top.length);
});

test("progress is written into one line whose Cancel stays the same button", async () => {
  await open();
  const cancel = button("Cancel");
  await model.reply("component", { progress: { done: 3, total: 20, note: "token shares" } });
  assert.match(el.querySelector(".nx-middle .nx-status").textContent, /token shares · 3 of 20/);
  assert.equal(button("Cancel"), cancel);
  mouse(cancel, "click");
  await settle();
  assert.equal(model.asked("cancel").at(-1).id, model.asked("component").at(-1).id);
  assert.match(el.querySelector(".nx-middle .nx-status").textContent, /cancelled/);
  mouse(button("Ask again"), "click");
  assert.equal(model.asked("component").length, 2);
});

test("what is known early is shown while the rest is computed", async () => {
  await open();
  const top = data.details[0].top.map((row) => ({ ...row, tokens: null, aside: [] }));
  const partial = { ...data.details[0], top, energy: null, sweep: null, other_energy: [], unavailable: "" };
  await model.reply("component", { progress: { done: 0, total: 20, note: "direction" }, partial });
  assert.equal(rows().length, top.length);
  assert.ok(button("Cancel"));
  assert.match(labelled("where it lives").textContent, /waiting/);
  assert.match(labelled("turn it").textContent, /waiting/);
  assert.equal(el.querySelectorAll(".nx-token").length, 0);
  await model.reply("component", { answer: data.details[0] });
  assert.ok(el.querySelectorAll(".nx-token").length > 0);
  assert.ok(labelled("where it lives").querySelector("svg"));
});

test("a table without labels: no chips, no empty words", async () => {
  await open(({ traits, details }) => {
    Object.assign(traits.overview, { columns: [], orders: traits.overview.orders.slice(0, 2), classes: [] });
    for (const component of traits.overview.components) Object.assign(component, { main_label: "", purity: 0, fine: null });
    Object.assign(details[0], { top: details[0].top.map((row) => ({ ...row, gold: null, prediction: "", probability: 0 })), sweep: null });
  });
  await model.reply("component", { answer: data.details[0] });
  assert.equal(el.querySelectorAll(".nx-chip").length, 0);
  assert.match(el.querySelector(".nx-sentence").textContent, /^\d+ examples$/);
});

test("what is missing is explained in place", async () => {
  await open();
  const why = "open the notebook with the model to see words and strengths";
  const top = data.details[0].top.map((row) => ({ ...row, tokens: null }));
  await model.reply("component", { answer: { ...data.details[0], top, energy: null, sweep: null, unavailable: why } });
  assert.match(el.querySelector(".nx-middle").textContent, new RegExp(why));
  assert.match(labelled("where it lives").textContent, new RegExp(why));
  assert.match(labelled("turn it").textContent, /for the same reason/);
  assert.equal(labelled("strength").disabled, true);
  assert.match(rows()[0].textContent, new RegExp(data.details[0].top[0].text.split(" ")[0]));
});

test("a component that does not exist is an error with the allowed numbers", async () => {
  await openReady();
  model.set("component", 40);
  assert.match(el.textContent, /component 40 does not exist: this decomposition has 6 \(0 to 5\)\./);
});

test("markup in data appears as text, everywhere", async () => {
  const evil = "<img src=x onerror=alert(1)>";
  await open(({ traits, details, examples }) => {
    const { overview } = traits;
    overview.title = overview.subtitle = evil;
    overview.classes = overview.classes.map(() => evil);
    overview.columns = [{ name: evil, values: overview.columns[0].values.map(() => evil) }];
    Object.assign(overview.components[0], { label: evil, main_label: evil, fine: { column: evil, name: evil, share: 1, expected: 0.1 } });
    Object.assign(details[0].top[0], { text: evil, gold: evil, prediction: evil, aside: [{ name: evil, share: 0.3 }], tokens: [{ text: evil, share: 0.5, space: true }] });
    Object.assign(details[0].energy, { layers: details[0].energy.layers.map(() => evil), kinds: details[0].energy.kinds.map(() => evil) });
    details[0].other_energy = [{ name: evil, value: 0.5 }];
    traits.labels = { 1: evil };
    traits.selection = [5];
    Object.assign(examples[5], { text: evil, gold: evil, prediction: evil });
  });
  await model.reply("component", { progress: { done: 1, total: 2, note: evil } });
  assert.equal(el.querySelectorAll("img").length, 0);
  await model.reply("component", { error: evil });
  assert.ok(el.querySelector("[role=alert]").textContent.includes(evil));
  mouse(button("Retry"), "click");
  await model.reply("component", { answer: data.details[0] });
  await model.reply("examples", { answer: [data.examples[5]] });
  model.set("strength", -0.55);
  type(labelled("search"), evil);
  assert.equal(el.querySelectorAll("img").length, 0);
  for (const part of [".nx-top", ".nx-title", ".nx-sentence", ".nx-example .nx-text", ".nx-example .nx-meta", ".nx-right", ".nx-picked"]) {
    assert.ok(el.querySelector(part).textContent.includes(evil), part);
  }
});

test("no overview yet: says so, and starts when it comes", async () => {
  await open(({ traits }) => { traits.later = traits.overview; traits.overview = null; });
  assert.match(el.textContent, /Nothing to show yet/);
  assert.equal(model.sent.length, 0);
  model.set("overview", data.traits.later);
  assert.equal(options().length, 6);
  model.set("overview", { ...data.traits.later, components: [] });
  assert.match(el.textContent, /Nothing to show yet/);
});

test("keys do not reach the notebook", async () => {
  await openReady();
  let heard = 0;
  el.addEventListener("keydown", () => (heard += 1));
  key(labelled("search"), "a");
  key(labelled("components"), "ArrowDown");
  assert.equal(heard, 0);
  assert.ok(el.querySelector(".npeff-explorer").hasAttribute("data-lm-suppress-shortcuts"));
});

test("two widgets on a page share nothing", async () => {
  await openReady();
  const [otherEl, otherData] = [page.document.body.appendChild(page.document.createElement("div")), smallData()];
  const other = fakeModel(otherData.traits);
  explorer.render({ model: other, el: otherEl });
  type(labelled("search"), "how");
  mouse(option(1), "click");
  assert.equal(other.get("component"), 0);
  assert.equal(labelled("components", otherEl).children.length, 6);
  assert.equal(labelled("search", otherEl).value, "");
});

test("cleanup leaves no listener, observer or element behind", async () => {
  await open();
  model.set("overview", { ...data.traits.overview, title: "built a second time" });
  assert.ok(model.listening() > 5);
  assert.ok(page.counts.observers > 1);
  cleanup();
  assert.equal(model.listening(), 0);
  assert.equal(page.counts.listeners, 0);
  assert.equal(page.counts.observers, 0);
  assert.equal(el.childElementCount, 0);
  const asked = new Set(model.asked("component").map(({ id }) => id));
  assert.deepEqual(new Set(model.asked("cancel").map(({ id }) => id)), asked, "what was on its way is cancelled");
});
