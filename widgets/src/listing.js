/** Which components the list and the table show, in which order. */

/** @import { ComponentSummary } from "./protocol.js" */
/** @typedef {"share" | "number" | "name" | "label" | "purity" | "fine" | "errors" | "examples" | "kl" | "kl_up" | "note" | "star"} SortKey */

/** @type {{ key: SortKey, name: string, descending: boolean }[]} how people expect each one first */
export const SORTS = [
  { key: "share", name: "share", descending: true },
  { key: "number", name: "number", descending: false },
  { key: "name", name: "name", descending: false },
  { key: "label", name: "main class", descending: false },
  { key: "purity", name: "purity", descending: true },
  { key: "fine", name: "fine label", descending: true },
  { key: "errors", name: "errors", descending: true },
  { key: "examples", name: "examples", descending: true },
  { key: "kl", name: "KL ratio, down", descending: true },
  { key: "kl_up", name: "KL ratio, up", descending: true },
  { key: "note", name: "note", descending: false },
  { key: "star", name: "starred", descending: true },
];

/** The trait `sort` apart: "-share" falls. @param {string} sort @returns {{ key: SortKey, falling: boolean }} */
export function parseSort(sort) {
  const falling = sort.startsWith("-");
  const key = SORTS.find((known) => known.key === sort.slice(falling ? 1 : 0))?.key;
  return key ? { key, falling } : { key: "share", falling: true };
}

/**
 * @param {ComponentSummary} component
 * @param {Record<string, string>} labels names given by the person
 */
export function labelOf(component, labels) {
  return labels[String(component.component)] || component.label;
}

/**
 * Is the query in a component's names? Every word of it must occur; a number alone also finds the component of that number.
 * @param {ComponentSummary} component
 * @param {Record<string, string>} labels
 * @param {Record<string, string>} notes
 * @param {string} query
 */
export function named(component, labels, notes, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 1 && words[0].replace(/^#/, "") === String(component.component)) return true;
  const haystack = [
    labelOf(component, labels), component.label, notes[String(component.component)] ?? "", component.main_label, component.fine?.name ?? "",
  ].join("\n").toLowerCase();
  return words.every((word) => haystack.includes(word));
}

/**
 * @param {ComponentSummary[]} components
 * @param {Record<string, string>} labels
 * @param {Record<string, string>} notes
 * @param {number[]} stars
 * @param {SortKey} key
 * @param {boolean} falling what has no figure, or no note, comes last either way
 */
export function arrange(components, labels, notes, stars, key, falling) {
  const marked = new Set(stars);
  /** @type {Record<SortKey, (component: ComponentSummary) => number | string | null | undefined>} */
  const of = {
    share: ({ share }) => share,
    number: ({ component }) => component,
    name: (component) => labelOf(component, labels),
    label: ({ main_label }) => main_label || null,
    purity: ({ purity, main_label }) => (main_label ? purity : null),
    fine: ({ fine }) => fine?.share,
    errors: ({ errors }) => errors,
    examples: ({ examples }) => examples,
    kl: ({ kl_ratio }) => kl_ratio?.[0],
    kl_up: ({ kl_ratio }) => kl_ratio?.[1],
    note: ({ component }) => notes[String(component)] || null,
    star: ({ component }) => Number(marked.has(component)),
  };
  const sign = falling ? -1 : 1;
  return components
    .map((component) => ({ component, value: of[key](component) ?? null }))
    .sort((a, b) => {
      if ((a.value === null) !== (b.value === null)) return a.value === null ? 1 : -1;
      const difference = typeof a.value === "string" ? NATURAL.compare(a.value, String(b.value)) : Number(a.value) - Number(b.value);
      return sign * difference || b.component.share - a.component.share || a.component.component - b.component.component;
    })
    .map(({ component }) => component);
}

/** "component 9" before "component 10". */
const NATURAL = new Intl.Collator(undefined, { numeric: true });

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
