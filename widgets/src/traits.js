/** The model's traits with their types, and with what they mean when they are missing or late. */

/** @import { AnyModel } from "@anywidget/types" */
/** @import { Overview, ComponentSummary } from "./protocol.js" */
/** @import { Scope } from "./scope.js" */
import { labelOf, renamed } from "./listing.js";

/** @typedef {ReturnType<typeof createTraits>} Traits */
/** @typedef {"overview" | "heat" | "component" | "strength" | "selection" | "labels" | "theme"} TraitName */

/** @param {AnyModel} model */
export function createTraits(model) {
  /** @returns {Overview | null} */
  function overview() {
    const value = model.get("overview");
    return value?.components?.length ? value : null;
  }

  /** @returns {number} */
  const component = () => model.get("component") ?? 0;
  /** @returns {number} */
  const strength = () => model.get("strength") ?? 0;
  /** @returns {Record<string, string>} */
  const labels = () => model.get("labels") ?? {};
  /** @returns {"auto" | "light" | "dark"} */
  const theme = () => model.get("theme") ?? "auto";

  /** @returns {number[]} */
  function selection() {
    const examples = overview()?.n_examples ?? 0;
    /** @type {number[]} */
    const rows = model.get("selection") ?? [];
    return rows.filter((row) => row >= 0 && row < examples);
  }

  /** @returns {Uint8Array | null} */
  function heat() {
    const view = model.get("heat");
    const about = overview();
    if (!view || !about || view.byteLength !== about.components.length * about.order.length) return null;
    return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  }

  /** @param {number} [number] @returns {ComponentSummary | null} */
  function summary(number = component()) {
    return overview()?.components.find((candidate) => candidate.component === number) ?? null;
  }

  /** @param {number} number */
  function label(number) {
    const found = summary(number);
    return found ? labelOf(found, labels()) : "";
  }

  /** @param {Record<string, any>} values set together, sent together */
  function update(values) {
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
  }

  return {
    /** null as long as there is nothing to show */
    get overview() {
      return overview();
    },
    /** components x examples; null when it is missing or does not fit the overview */
    get heat() {
      return heat();
    },
    get component() {
      return component();
    },
    get strength() {
      return strength();
    },
    /** rows that exist */
    get selection() {
      return selection();
    },
    get labels() {
      return labels();
    },
    get theme() {
      return theme();
    },
    summary,
    label,
    /** "component 14: why · does" @param {number} number */
    name: (number) => `component ${number}: ${label(number)}`,
    update,
    /** @param {number} row */
    toggle(row) {
      const rows = selection();
      update({ selection: rows.includes(row) ? rows.filter((other) => other !== row) : [...rows, row] });
    },
    /** @param {number} number @param {string} name */
    rename(number, name) {
      const found = summary(number);
      if (found) update({ labels: renamed(labels(), found, name) });
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
