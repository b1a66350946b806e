/** Which components the list shows, in which order. */

/** @import { ComponentSummary } from "./protocol.js" */
/** @typedef {"share" | "number" | "name" | "purity" | "examples"} SortKey */

/** @type {{ key: SortKey, name: string, descending: boolean }[]} how people expect each one first */
export const SORTS = [
  { key: "share", name: "share", descending: true },
  { key: "number", name: "number", descending: false },
  { key: "name", name: "name", descending: false },
  { key: "purity", name: "purity", descending: true },
  { key: "examples", name: "examples", descending: true },
];

/**
 * @param {ComponentSummary} component
 * @param {Record<string, string>} labels names given by the person
 */
export function labelOf(component, labels) {
  return labels[String(component.component)] || component.label;
}

/**
 * Every word of the query must occur somewhere; a number alone also finds the component of that number.
 * @param {ComponentSummary} component
 * @param {Record<string, string>} labels
 * @param {string} query
 */
export function matches(component, labels, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 1 && words[0].replace(/^#/, "") === String(component.component)) return true;
  const haystack = [
    labelOf(component, labels), component.label, component.main_label, component.fine?.name ?? "", component.keywords,
  ].join("\n").toLowerCase();
  return words.every((word) => haystack.includes(word));
}

/**
 * @param {ComponentSummary[]} components
 * @param {Record<string, string>} labels
 * @param {{ query: string, sort: SortKey, descending: boolean }} view
 */
export function arrange(components, labels, view) {
  /** @type {Record<SortKey, (a: ComponentSummary, b: ComponentSummary) => number>} */
  const rising = {
    share: (a, b) => a.share - b.share,
    number: (a, b) => a.component - b.component,
    name: (a, b) => labelOf(a, labels).localeCompare(labelOf(b, labels), undefined, { numeric: true }),
    purity: (a, b) => a.purity - b.purity,
    examples: (a, b) => a.examples - b.examples,
  };
  const sign = view.descending ? -1 : 1;
  return components
    .filter((component) => matches(component, labels, view.query))
    .sort((a, b) => sign * rising[view.sort](a, b) || a.component - b.component);
}

/**
 * The labels after a person renamed one component. An empty name, or the default, takes the entry out again.
 * @param {Record<string, string>} labels
 * @param {ComponentSummary} component
 * @param {string} name
 */
export function renamed(labels, component, name) {
  const { [String(component.component)]: _, ...others } = labels;
  const trimmed = name.trim();
  return trimmed === "" || trimmed === component.label ? others : { ...others, [String(component.component)]: trimmed };
}
