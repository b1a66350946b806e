/** A second component kept in view: its top examples in short, to compare with those of the component in focus. */

/** @import { Context } from "./explorer.js" */
import { button, h } from "./dom.js";
import { coefficient } from "./numbers.js";
import { failedLine } from "./status_line.js";
import { visibleText } from "./tokens.js";

const SHOWN = 8;

/** @param {Context} context */
export function pinnedExamples({ traits, examples, requests, scope }) {
  const name = h("span", { class: "nx-label" });
  const list = h("ul", { class: "nx-pinnedlist" });
  const show = button("show the pinned component", "show", () => traits.update({ component: traits.get("pinned") }));
  const swap = button("swap the pinned component with the one in focus", "swap", () => traits.update({ component: traits.get("pinned"), pinned: traits.component }));
  const drop = button("unpin", "×", () => traits.update({ pinned: -1 }), { class: "nx-icon" });
  const element = h("section", { class: "nx-pinned", "aria-label": "pinned component", hidden: true },
    h("div", { class: "nx-head" }, h("h3", {}, "Pinned"), name, h("span", { class: "nx-spring" }), show, swap, drop), list);
  /** @type {Map<number, number[]>} */
  const tops = new Map();
  /** @type {number | null} */
  let asked = null;
  /** @type {string | null} */
  let failed = null;
  /** Is an example still on its way? */
  let open = false;

  function ask() {
    const component = traits.get("pinned");
    if (asked === component) return;
    asked = component;
    failed = null;
    requests.ask({ ask: "tops", components: [component] }).promise.then(
      (/** @type {{ rows: number[][] }} */ { rows }) => {
        tops.set(component, rows[0].slice(0, SHOWN));
        if (asked === component) asked = null;
        write();
      },
      (error) => {
        if (asked !== component) return;
        failed = error.message;
        write();
      },
    );
  }

  function write() {
    const component = traits.get("pinned");
    const summary = component >= 0 ? traits.summary(component) : null;
    element.hidden = !summary;
    if (!summary) return;
    name.textContent = `${component} · ${visibleText(traits.label(component), 120)}`;
    show.disabled = swap.disabled = component === traits.component;
    const rows = tops.get(component);
    if (!rows) {
      if (failed === null) ask();
      const retry = () => {
        asked = null;
        ask();
        write();
      };
      list.replaceChildren(h("li", {}, failed === null ? h("span", { class: "nx-dim" }, "…") : failedLine("the pinned component", failed, retry)));
      return;
    }
    examples.want(rows);
    open = rows.some((row) => !examples.get(row));
    const picked = new Set(traits.selection);
    list.replaceChildren(...rows.map((row) => {
      const detail = examples.get(row);
      if (!detail) return h("li", { class: "nx-dim" }, examples.trouble(row) ?? "…");
      const value = detail.coefficients.find((one) => one.component === component)?.value;
      const pick = button(`pick example ${row}: ${visibleText(detail.text, 400)}`, visibleText(detail.text, 400), () => traits.toggle(row), { class: "nx-link", "aria-pressed": String(picked.has(row)) });
      return h("li", {}, h("span", { class: "nx-figure nx-dim" }, value === undefined ? "" : coefficient(value)), pick);
    }));
  }

  traits.onChange(scope, ["pinned"], () => {
    asked = failed = null;
    write();
  });
  traits.onChange(scope, ["labels", "selection", "component"], write);
  examples.changed.on(() => {
    if (open) write();
  });
  write();
  return element;
}
