// Writes a static page with invented data, to look at the front end without a model:
//   node dev/make_page.mjs OUT.html [--components 32] [--examples 2000] [--data page_data.json]
// Run `npm run build` first: the page is put together from the built files, as Python does it.
import { readFile, writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { inventData } from "./invent.mjs";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { components: { type: "string", default: "32" }, examples: { type: "string", default: "2000" }, data: { type: "string" } },
});
const [out] = positionals;
if (!out) throw new Error("where to? node dev/make_page.mjs OUT.html");

const built = new URL("../../npeff_nb/widgets/static/", import.meta.url);
const read = (name) => readFile(new URL(name, built), "utf8");
const [page, css, js] = await Promise.all([read("page.html"), read("explorer.css"), read("page.js")]);
const data = values.data ? JSON.parse(await readFile(values.data, "utf8")) : inventData(Number(values.components), Number(values.examples));

/** @type {Record<string, string>} */
const parts = {
  "/*EXPLORER_CSS*/": css,
  "/*EXPLORER_JS*/": js,
  "/*DATA*/": JSON.stringify(data).replaceAll("<", "\\u003c"),
  "<!--TITLE-->": "npeff-nb explorer",
  "<!--FALLBACK-->": "<p>This page needs JavaScript to show the explorer.</p>",
};
// one pass: what is put in is not searched for placeholders again
const html = page.replace(/\/\*(?:EXPLORER_CSS|EXPLORER_JS|DATA)\*\/|<!--(?:TITLE|FALLBACK)-->/g, (placeholder) => parts[placeholder]);
await writeFile(out, html);
