/** The model's traits with their types, and with what they mean when they are missing or late. */

/** @import { AnyModel } from "@anywidget/types" */
/** @import { Overview, ComponentSummary, PanelName } from "./protocol.js" */
/** @import { Scope } from "./scope.js" */
import { labelOf, renamed } from "./listing.js";

/** @typedef {ReturnType<typeof createTraits>} Traits */
/** @typedef {keyof typeof DEFAULTS | "overview"} TraitName */

/** Every trait but the overview, with what it is while the model has none. */
export const DEFAULTS = {
  panels: /** @type {PanelName[]} */ (["components"]),
  panel: /** @type {PanelName} */ ("components"),
  component: 0,
  pinned: -1,
  strength: 0,
  others: /** @type {Record<string, number>} */ ({}),
  selection: /** @type {number[]} */ ([]),
  example: -1,
  labels: /** @type {Record<string, string>} */ ({}),
  notes: /** @type {Record<string, string>} */ ({}),
  stars: /** @type {number[]} */ ([]),
  query: "",
  sort: "-share",
  order: "",
  strip: "",
  text: "",
  tokens: /** @type {"share" | "sensitivity"} */ ("share"),
  pieces: false,
  theme: /** @type {"auto" | "light" | "dark"} */ ("auto"),
};

/** @param {AnyModel} model */
export function createTraits(model) {
  /** @template {keyof typeof DEFAULTS} T @param {T} name @returns {(typeof DEFAULTS)[T]} */
  const get = (name) => model.get(name) ?? DEFAULTS[name];

  /** @returns {Overview | null} */
  function overview() {
    const value = model.get("overview");
    return value?.components?.length ? value : null;
  }

  /** @param {number} [number] @returns {ComponentSummary | null} */
  function summary(number = get("component")) {
    return overview()?.components.find((candidate) => candidate.component === number) ?? null;
  }

  /** @param {number} number */
  function label(number) {
    const found = summary(number);
    return found ? labelOf(found, get("labels")) : "";
  }

  /** @param {Partial<typeof DEFAULTS>} values set together, sent together */
  function update(values) {
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
  }

  return {
    get,
    /** What the person chose, as plain values: Python's `explorer.state`. */
    state() {
      const names = /** @type {(keyof typeof DEFAULTS)[]} */ (Object.keys(DEFAULTS).filter((name) => !["panels", "labels", "notes", "stars"].includes(name)));
      return Object.fromEntries(names.map((name) => [name, get(name)]));
    },
    /** null as long as there is nothing to show */
    get overview() {
      return overview();
    },
    get component() {
      return get("component");
    },
    get strength() {
      return get("strength");
    },
    /** rows that exist */
    get selection() {
      const examples = overview()?.n_examples ?? 0;
      return get("selection").filter((row) => row >= 0 && row < examples);
    },
    get labels() {
      return get("labels");
    },
    get theme() {
      return get("theme");
    },
    summary,
    label,
    /** "component 14: why · does" @param {number} number */
    name: (number) => `component ${number}: ${label(number)}`,
    update,
    /** @param {number} row */
    toggle(row) {
      const rows = this.selection;
      update({ selection: rows.includes(row) ? rows.filter((other) => other !== row) : [...rows, row] });
    },
    /** @param {number} number */
    star(number) {
      const stars = get("stars");
      update({ stars: stars.includes(number) ? stars.filter((other) => other !== number) : [...stars, number].sort((a, b) => a - b) });
    },
    /** @param {number} number @param {string} text */
    note(number, text) {
      const { [String(number)]: _, ...others } = get("notes");
      update({ notes: text.trim() ? { ...others, [String(number)]: text.trim() } : others });
    },
    /** @param {number} number @param {string} name */
    rename(number, name) {
      const found = summary(number);
      if (found) update({ labels: renamed(get("labels"), found, name) });
    },
    /**
     * @param {Scope} scope
     * @param {TraitName[]} names
     * @param {() => void} listener
     */
    onChange(scope, names, listener) {
      for (const name of names) {
        model.on(`change:${name}`, listener);
        scope.add(() => model.off(`change:${name}`, listener));
      }
    },
  };
}
