/** The columns of the component table: what each says, for the eye and for a spreadsheet. */

/** @import { ComponentSummary } from "./protocol.js" */
/** @import { SortKey } from "./listing.js" */
import { klRatio, line, outOf } from "./figures.js";
import { labelOf } from "./listing.js";
import { count, percent } from "./numbers.js";

/** @typedef {{ labels: Record<string, string>, notes: Record<string, string>, stars: Set<number>, examples: number }} Said what the person said, and how many examples there are */
/**
 * @typedef {object} Column
 * @property {string} name
 * @property {string} title in full
 * @property {SortKey} sort
 * @property {number} [width] in pixels; the name takes what is left
 * @property {boolean} [figure] figures stand right
 * @property {(summary: ComponentSummary, said: Said) => string} cell as it is shown
 * @property {(summary: ComponentSummary, said: Said) => string | number} plain as it is copied: shares of one, no thousands separators
 */

/** @param {ComponentSummary} summary @param {Said} said */
const starred = ({ component }, { stars }) => stars.has(component);

/** @type {Column[]} */
export const COLUMNS = [
  { name: "★", title: "starred", sort: "star", width: 34, cell: (summary, said) => (starred(summary, said) ? "★" : "☆"), plain: (summary, said) => (starred(summary, said) ? 1 : 0) },
  { name: "#", title: "number of the component", sort: "number", width: 44, figure: true, cell: ({ component }) => String(component), plain: ({ component }) => component },
  { name: "name", title: "name; F2 or a double click changes it", sort: "name", cell: (summary, { labels }) => line(labelOf(summary, labels)), plain: (summary, { labels }) => labelOf(summary, labels) },
  { name: "energy", title: "share of the explained energy", sort: "share", width: 84, figure: true, cell: ({ share }) => percent(share, 1), plain: ({ share }) => share },
  {
    name: "examples", title: "examples that use it, and their share of all", sort: "examples", width: 104, figure: true,
    cell: ({ examples }, said) => `${count(examples)} · ${percent(examples / said.examples)}`, plain: ({ examples }) => examples,
  },
  { name: "main class", title: "commonest class among the top examples", sort: "label", width: 110, cell: ({ main_label }) => line(main_label), plain: ({ main_label }) => main_label },
  {
    name: "purity", title: "how many of the top examples are of the main class", sort: "purity", width: 76, figure: true,
    cell: ({ main_label, purity, counted }) => (main_label ? outOf(purity, counted) : ""), plain: ({ main_label, purity }) => (main_label ? purity : ""),
  },
  {
    name: "fine label", title: "commonest finer label among the top examples, its share, and the share that chance expects among examples of the same classes", sort: "fine", width: 252,
    cell: ({ fine }) => (fine ? `${line(fine.name)} ${percent(fine.share)}, expected ${percent(fine.expected)}` : ""), plain: ({ fine }) => fine?.name ?? "",
  },
  { name: "errors", title: "share of the top examples that the model gets wrong", sort: "errors", width: 66, figure: true, cell: ({ errors }) => (errors === null ? "" : percent(errors)), plain: ({ errors }) => errors ?? "" },
  { name: "KL −", title: "turned down: KL on its top examples over KL on random others, once measured", sort: "kl", width: 66, figure: true, cell: (summary) => klRatio(summary, 0), plain: ({ kl_ratio }) => kl_ratio?.[0] ?? "" },
  { name: "KL +", title: "turned up: KL on its top examples over KL on random others, once measured", sort: "kl_up", width: 66, figure: true, cell: (summary) => klRatio(summary, 1), plain: ({ kl_ratio }) => kl_ratio?.[1] ?? "" },
  { name: "note", title: "what you wrote about it", sort: "note", width: 120, cell: ({ component }, { notes }) => line(notes[String(component)] ?? ""), plain: ({ component }, { notes }) => notes[String(component)] ?? "" },
];

/** Columns that a spreadsheet has besides, after the fine label. @type {[string, (summary: ComponentSummary) => string | number][]} */
const BESIDES = [["fine label share", ({ fine }) => fine?.share ?? ""], ["fine label expected", ({ fine }) => fine?.expected ?? ""]];

/** The table as tab-separated text, with a row of heads. @param {ComponentSummary[]} components @param {Said} said */
export function asTsv(components, said) {
  const heads = [...COLUMNS.map(({ name, title }) => (/^\w/.test(name) ? name : title.split(" ")[0])), ...BESIDES.map(([name]) => name)];
  const rows = components.map((summary) => [...COLUMNS.map(({ plain }) => plain(summary, said)), ...BESIDES.map(([, plain]) => plain(summary))]);
  return [heads, ...rows].map((cells) => cells.map(cell).join("\t")).join("\n");
}

/** A tab or a line break would begin another cell; a spreadsheet would run what begins like a formula. @param {string | number} value */
function cell(value) {
  if (typeof value === "number") return String(value);
  const text = value.replace(/[\t\r\n]+/g, " ");
  return /^[=+\-@]/.test(text) ? `'${text}` : text;
}
