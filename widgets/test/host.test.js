import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { JSDOM } from "jsdom";
import { inventData } from "../dev/invent.mjs";
import explorer from "../src/explorer.js";
import { createHost } from "../src/host.js";
import { createRequests, uuid } from "../src/requests.js";
import { createScope } from "../src/scope.js";
import { openPage, settle } from "./page.js";

test("the host answers from the page's data, later, and never as live", async () => {
  const data = inventData(4, 20);
  data.overview.live = true;
  const host = createHost(data);
  assert.equal(host.get("overview").live, false);
  assert.equal(host.get("heat").byteLength, 80);
  const heard = [];
  host.on("msg:custom", (message) => heard.push(message));
  host.send({ id: "a", ask: "component", component: 2 });
  host.send({ id: "b", ask: "examples", rows: [3, 99] });
  host.send({ id: "c", ask: "component", component: 77 });
  host.send({ id: "d", ask: "strength", component: 1, strength: -0.45 });
  assert.equal(heard.length, 0);
  await settle();
  const [a, b, c, d] = heard;
  assert.equal(a.answer.component, 2);
  assert.deepEqual(b.answer.map(({ row }) => row), [3]);
  assert.match(c.error, /component 77/);
  assert.ok(d.answer.kl_top > 0);
});

test("the explorer works on the host", async () => {
  const { document } = openPage();
  const el = document.body.appendChild(document.createElement("div"));
  const host = createHost(inventData(4, 20));
  explorer.render({ model: host, el });
  await settle();
  host.set("strength", -0.55);
  assert.ok(el.querySelectorAll(".nx-example").length > 0);
  assert.match(el.textContent, /interpolated between computed strengths; run the notebook/);
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
