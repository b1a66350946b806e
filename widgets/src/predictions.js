/** "Predictions, before → after": the mean over the shown top examples, one line a class. */

/** @import { Context } from "./explorer.js" */
import { h } from "./dom.js";
import { percent } from "./numbers.js";
import { classesToShow, meanProbabilities } from "./sweep.js";

/** More classes than these make the column longer than the examples beside it. */
const MOST = 8;

/** @param {Context} context */
export function predictions({ traits, effect }) {
  const table = h("div", { class: "nx-pairs", role: "table", "aria-label": "predictions before and after" });
  const more = h("p", { class: "nx-legend" });
  const section = h("section", { "aria-label": "predictions" }, h("h3", {}, "Predictions, before → after"), table, more);

  /** @param {number} value @param {string} hue */
  const cell = (value, hue) => {
    const bar = h("span", { class: `nx-bar ${hue}`, "aria-hidden": "true" }, h("i"));
    /** @type {HTMLElement} */ (bar.firstElementChild).style.width = `${100 * value}%`;
    return h("span", { class: "nx-pair", role: "cell" }, bar, h("span", { class: "nx-figure" }, percent(value)));
  };

  function update() {
    const { sweep, shown } = effect;
    section.hidden = !shown;
    if (!sweep || !shown) return;
    const classes = traits.overview?.classes ?? [];
    const before = meanProbabilities(shown.before.probabilities);
    const after = meanProbabilities(shown.after.probabilities);
    const order = classesToShow(sweep, MOST);
    table.replaceChildren(...order.map((c, i) => {
      const hue = i === 0 ? "nx-hot" : "nx-cold"; // the class that leads before the edit
      return h("div", { class: "nx-pairrow", role: "row" },
        h("span", { class: "nx-class", role: "rowheader", title: classes[c] ?? "" }, classes[c] ?? `class ${c}`), cell(before[c], hue), cell(after[c], hue));
    }));
    const rows = shown.before.probabilities.length;
    const hidden = before.length - order.length;
    more.textContent = `mean over the ${rows} examples shown${hidden > 0 ? ` · ${hidden} less likely ${hidden === 1 ? "class" : "classes"} left out` : ""}`;
  }

  effect.changed.on(update);
  update();
  return section;
}
