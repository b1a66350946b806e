/** Search in a page without a kernel: the same answers as `npeff_nb/widgets/search.py`, held together by test/search_cases.json. */

/** @import { ComponentDetail, ComponentSummary, Found } from "./protocol.js" */

/** @typedef {{ label: string, values: string[], texts: string[] }} Entry what is searched of one component */

const SEARCHED = 2000;
const LONGEST_QUERY = 200;
const AROUND = 24;
const LABEL = 40;
const VALUE = 10;
const PHRASE = 1;
const INSIDE = 0.04;

/**
 * An entry from what a saved page holds of a component anyway.
 * @param {ComponentSummary} summary
 * @param {ComponentDetail | undefined} detail
 * @returns {Entry}
 */
export function entryOf(summary, detail) {
  const values = [summary.main_label, summary.fine?.name ?? "", ...(detail?.enriched ?? []).flatMap((of) => of.values.map(({ name }) => name))];
  return { label: summary.label, values: [...new Set(values.filter(Boolean))], texts: (detail?.top ?? []).map(({ text }) => text.slice(0, SEARCHED)) };
}

/**
 * Entries in which some top example, together with the component's label and values, has every word of the query; most relevant first.
 * @param {Entry[]} entries
 * @param {string} query
 * @returns {Found} numbers are places in `entries`
 */
export function find(entries, query) {
  const words = query.slice(0, LONGEST_QUERY).toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return { components: [], why: [] };
  const phrase = words.join(" ");
  const starts = words.map((word) => new RegExp(`(?:^|[^\\p{L}\\p{N}])${word.replace(/[.*+?^${}()|[\]\\/-]/g, "\\$&")}`, "u"));
  /** @type {{ k: number, score: number, why: string }[]} */
  const found = [];
  entries.forEach((entry, k) => {
    const head = [entry.label, ...entry.values].join("\n").toLowerCase();
    const texts = entry.texts.map((text) => text.toLowerCase());
    const missing = words.filter((_, w) => !starts[w].test(head));
    const at = texts.flatMap((text, i) => (missing.every((word) => text.includes(word)) ? [i] : []));
    if (missing.length && at.length === 0) return;
    const label = entry.label.toLowerCase();
    let [score, why] = [0, ""];
    if (starts.every((start) => start.test(label))) [score, why] = [LABEL, "in its words"];
    else if (missing.length === 0) [score, why] = [VALUE, `labels: ${entry.values.filter((value) => starts.some((start) => start.test(value.toLowerCase()))).join(", ")}`];
    else {
      const shown = at.find((i) => texts[i].includes(phrase)) ?? at[0];
      why = `${at.length} of ${texts.length} top examples: ${snippet(entry.texts[shown], texts[shown], phrase, missing[0])}`;
    }
    for (const i of at) {
      const has = words.map((word) => texts[i].includes(word));
      const times = has.filter(Boolean).length;
      if (times === 0) continue;
      const whole = starts.every((start, w) => !has[w] || start.test(texts[i]));
      score += ((whole ? 1 : INSIDE) * times) / words.length + (words.length > 1 && texts[i].includes(phrase) ? PHRASE : 0);
    }
    found.push({ k, score, why });
  });
  found.sort((a, b) => b.score - a.score || a.k - b.k);
  return { components: found.map(({ k }) => k), why: found.map(({ why }) => why) };
}

/** @param {string} text @param {string} folded @param {string} phrase @param {string} word */
function snippet(text, folded, phrase, word) {
  const what = folded.includes(phrase) ? phrase : word;
  const at = folded.indexOf(what);
  const [low, high] = [Math.max(0, at - AROUND), Math.min(text.length, at + what.length + AROUND)];
  return `${low > 0 ? "…" : ""}${text.slice(low, high).trim().split(/\s+/).join(" ")}${high < text.length ? "…" : ""}`;
}
