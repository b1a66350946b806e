import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { JSDOM } from "jsdom";
import { inventData } from "../dev/invent.mjs";
import explorer from "../src/explorer.js";
import { createHost } from "../src/host.js";
import { withData } from "../src/page_copy.js";
import { createRequests, uuid } from "../src/requests.js";
import { createScope } from "../src/scope.js";
import { openPage, settle } from "./page.js";

test("the host answers from the page's data, later, and never as live", async () => {
  const data = inventData(4, 20);
  data.overview.live = true;
  const host = createHost(data);
  assert.equal(host.get("overview").live, false);
  const heard = [];
  host.on("msg:custom", (message, buffers) => heard.push({ ...message, buffers }));
  host.send({ id: "a", ask: "component", component: 2 });
  host.send({ id: "b", ask: "examples", rows: [3] });
  host.send({ id: "c", ask: "component", component: 77 });
  host.send({ id: "d", ask: "examples", rows: [99] });
  host.send({ id: "e", ask: "text", text: "who" });
  host.send({ id: "f", ask: "search", query: "how many" });
  host.send({ id: "g", ask: "heat", order: data.overview.orders[0], focus: 0, strip: "label", from: 0, to: 20, columns: 10 });
  host.send({ id: "h", ask: "band", component: 0, band: 4 });
  host.send({ id: "i", ask: "tops", components: [1, 2] });
  assert.equal(heard.length, 0);
  await settle();
  const [a, b, c, d, e, f, g, h, i] = heard;
  assert.equal(a.answer.component, 2);
  assert.deepEqual(b.answer.map(({ row }) => row), [3]);
  assert.match(c.error, /component 77 does not exist: this page has 4/);
  assert.match(d.error, /example 99 is not in this page, which holds 20 of them/);
  assert.match(e.error, /this page has no model to run; open the decomposition in a notebook/);
  assert.equal(f.answer.components[0], 1);
  assert.equal(g.buffers[0].byteLength, 40);
  assert.equal(g.buffers[1].byteLength, 20);
  assert.ok(h.answer.length > 0 && h.answer.every(({ coefficient }) => coefficient === 0));
  assert.deepEqual(i.answer.rows[0], data.details[1].top.map(({ row }) => row));
});

test("a saved copy holds what the person changed, and is the page otherwise", () => {
  const data = inventData(4, 20);
  const { document } = new JSDOM(`<!doctype html><html><body><script type="application/json" id="npeff-data">{}</script><p>kept</p></body></html>`).window;
  const text = withData(document.documentElement, { ...data, notes: { 2: "</script><b>" }, stars: [2] });
  assert.doesNotMatch(text, /<b>/);
  const again = new JSDOM(text).window.document;
  const read = JSON.parse(again.getElementById("npeff-data").textContent);
  assert.deepEqual([read.notes, read.stars, read.overview], [{ 2: "</script><b>" }, [2], JSON.parse(JSON.stringify(data.overview))]);
  assert.equal(again.querySelector("p").textContent, "kept");
});

test("the explorer works on the host", async () => {
  const { document } = openPage();
  const el = document.body.appendChild(document.createElement("div"));
  const host = createHost(inventData(4, 20));
  explorer.render({ model: host, el });
  await settle();
  host.set("strength", -0.55);
  assert.ok(el.querySelectorAll(".nx-example").length > 0);
  assert.ok(el.querySelectorAll(".nx-component").length === 4);
});

test("the page's template has each placeholder once and forbids the network", async () => {
  const html = await readFile(new URL("../src/page.html", import.meta.url), "utf8");
  for (const placeholder of ["/*EXPLORER_CSS*/", "/*EXPLORER_JS*/", "/*DATA*/", "<!--TITLE-->", "<!--FALLBACK-->"]) {
    assert.equal(html.split(placeholder).length, 2, placeholder);
  }
  const policy = new JSDOM(html).window.document.querySelector("meta[http-equiv=Content-Security-Policy]").content;
  assert.match(policy, /default-src 'none'/);
  assert.doesNotMatch(policy, /https?:|\*|'self'|connect-src/);
});

test("an identifier also without randomUUID, as on plain http", () => {
  Object.defineProperty(crypto, "randomUUID", { value: undefined, configurable: true });
  try {
    assert.equal(new Set(Array.from({ length: 100 }, uuid)).size, 100);
  } finally {
    delete crypto.randomUUID; // the prototype's comes back
  }
});

test("a request that cannot be sent fails instead of waiting for ever", async () => {
  const model = { on() {}, off() {}, send() { throw new Error("no kernel"); } };
  const requests = createRequests(model, createScope());
  await assert.rejects(requests.ask({ ask: "component", component: 1 }).promise, /no kernel/);
});
