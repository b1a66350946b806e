/** "Predictions, before → after": means over a set of examples, one line a class. */

/** @import { Context } from "./explorer.js" */
import { h } from "./dom.js";
import { percent } from "./numbers.js";
import { classesToShow } from "./sweep.js";

/** More classes than these make the column longer than the examples beside it. */
const MOST = 8;

/**
 * A bar with its figure.
 * @param {number | undefined} value
 * @param {string} hue
 */
export function bar(value, hue) {
  const filled = h("i");
  filled.style.width = `${100 * (value ?? 0)}%`;
  return h("span", { class: "nx-pair", role: "cell" }, h("span", { class: `nx-bar ${hue}`, "aria-hidden": "true" }, filled), h("span", { class: "nx-figure" }, value === undefined ? "–" : percent(value)));
}

/**
 * The table of one set.
 * @param {Context} context
 * @param {"mean_top" | "mean_baseline"} set
 * @param {string} name what a screen reader says
 */
export function classTable({ traits, effect }, set, name) {
  const table = h("div", { class: "nx-pairs", role: "table", "aria-label": name });
  return {
    element: table,
    /** Draws it; how many classes were left out, or null where nothing is known. @returns {number | null} */
    update() {
      const before = effect.shown?.before[set];
      const after = effect.shown?.after[set];
      table.hidden = !before;
      if (!before) return null;
      const classes = traits.overview?.classes ?? [];
      const order = classesToShow(before, set === "mean_top" ? effect.means : [], MOST);
      table.replaceChildren(...order.map((c, i) => {
        const hue = i === 0 ? "nx-hot" : "nx-cold"; // the class that leads before the edit
        return h("div", { class: "nx-pairrow", role: "row" },
          h("span", { class: "nx-class", role: "rowheader", title: classes[c] ?? "" }, classes[c] ?? `class ${c}`), bar(before[c], hue), bar(after?.[c], hue));
      }));
      return before.length - order.length;
    },
  };
}

/** @param {Context} context */
export function predictions(context) {
  const { effect } = context;
  const table = classTable(context, "mean_top", "predictions before and after");
  const more = h("p", { class: "nx-legend" });
  const section = h("section", { "aria-label": "predictions" }, h("h3", {}, "Predictions, before → after"), table.element, more);

  function update() {
    const hidden = table.update();
    section.hidden = hidden === null;
    more.textContent = `mean over the ${effect.shown?.before.counted ?? 0} top examples${hidden ? ` · ${hidden} less likely ${hidden === 1 ? "class" : "classes"} left out` : ""}`;
  }

  effect.changed.on(update);
  update();
  return section;
}
