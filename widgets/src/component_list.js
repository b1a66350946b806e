/** The left column: every component with its number, name, histogram and share. */

/** @import { ComponentSummary } from "./protocol.js" */
/** @import { Context } from "./explorer.js" */
import { button, focused, h, scrollWithin, svg } from "./dom.js";
import { histogramPath } from "./histogram.js";
import { editLabel } from "./label_editor.js";
import { SORTS } from "./listing.js";
import { count, percent } from "./numbers.js";
import { onWidth } from "./resize.js";

/** @typedef {{ summary: ComponentSummary, option: HTMLElement, label: HTMLElement, value: HTMLElement, editing: boolean }} Row */

const HISTOGRAM = { width: 62, height: 16 };

/** @param {Context} context */
export function componentList({ traits, view, scope }) {
  const list = h("ul", { class: "nx-components", role: "listbox", "aria-label": "components" });
  const total = h("span", { class: "nx-dim" });
  const nothing = h("p", { class: "nx-absent", hidden: true });
  const clear = button("clear search", "Show all", () => view.search(""));
  const sort = h("select", { "aria-label": "sort components", title: "sort by" });
  for (const { key, name } of SORTS) sort.append(h("option", { value: key }, name));
  sort.addEventListener("change", () => view.sortBy(/** @type {any} */ (sort.value)));
  const direction = button("reverse order", "↓", () => view.reverse(), { class: "nx-icon" });

  /** @type {Map<number, Row>} */
  const rows = new Map();
  /** The one option that Tab reaches; arrows move it. */
  let active = traits.component;

  for (const summary of traits.overview?.components ?? []) {
    const number = summary.component;
    const histogram = svg(
      "svg", { class: "nx-histogram", viewBox: `0 0 ${HISTOGRAM.width} ${HISTOGRAM.height}`, "aria-hidden": "true" },
      svg("path", { d: histogramPath(summary.histogram, HISTOGRAM.width, HISTOGRAM.height) }),
    );
    const label = h("span", { class: "nx-label" });
    const value = h("span", { class: "nx-value" });
    const option = h("li", { class: "nx-component", role: "option", tabindex: -1 }, h("span", { class: "nx-number" }, number), label, histogram, value);
    const row = { summary, option, label, value, editing: false };
    option.addEventListener("click", () => {
      moveTo(number);
      traits.update({ component: number });
    });
    option.addEventListener("dblclick", () => edit(row));
    rows.set(number, row);
  }

  /** @param {Row} row */
  function edit(row) {
    if (row.editing) return;
    row.editing = true;
    const number = row.summary.component;
    editLabel(row.label, {
      value: traits.label(number),
      name: `name of component ${number}`,
      save: (text) => traits.rename(number, text),
      finished: () => {
        row.editing = false;
        write(row);
        if (rows.get(active) === row) row.option.focus({ preventScroll: true });
      },
    });
  }

  /** @param {Row} row */
  function write(row) {
    const { summary } = row;
    const chosen = summary.component === traits.component;
    const label = traits.label(summary.component);
    row.option.setAttribute("aria-label", traits.name(summary.component));
    row.option.setAttribute("aria-selected", String(chosen));
    row.option.tabIndex = summary.component === active ? 0 : -1;
    row.option.title = `${label} · ${count(summary.examples)} examples · ${percent(summary.purity)} ${summary.main_label}`;
    if (!row.editing) row.label.textContent = label;
    row.value.textContent = view.sort === "purity" ? percent(summary.purity)
      : view.sort === "examples" ? count(summary.examples) : percent(summary.share, 1);
  }

  /** @param {number} number */
  function moveTo(number) {
    active = number;
    for (const row of rows.values()) row.option.tabIndex = row.summary.component === active ? 0 : -1;
    const option = rows.get(number)?.option;
    if (!option) return;
    option.focus({ preventScroll: true });
    scrollWithin(list, option);
  }

  list.addEventListener("keydown", (event) => {
    const shown = view.components.map(({ component }) => component);
    const at = shown.indexOf(active);
    /** @type {Record<string, number>} */
    const moves = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: shown.length - 1, PageDown: at + 10, PageUp: at - 10 };
    if (event.key in moves) {
      event.preventDefault();
      moveTo(shown[Math.max(0, Math.min(shown.length - 1, moves[event.key]))]);
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      traits.update({ component: active });
    } else if (event.key === "F2") {
      event.preventDefault();
      const row = rows.get(active);
      if (row) edit(row);
    }
  });

  function arrangeRows() {
    const shown = view.components;
    if (!shown.some(({ component }) => component === active)) {
      active = shown.find(({ component }) => component === traits.component)?.component ?? shown[0]?.component ?? active;
    }
    const holder = focused(list);
    const options = shown.map(({ component }) => /** @type {Row} */ (rows.get(component)).option);
    const same = options.length === list.children.length && options.every((option, i) => option === list.children[i]);
    if (!same) {
      list.replaceChildren(...options);
      if (holder?.isConnected) holder.focus({ preventScroll: true });
    }
    for (const row of rows.values()) write(row);
    total.textContent = shown.length === rows.size ? count(rows.size) : `${shown.length} of ${rows.size}`;
    nothing.hidden = shown.length > 0;
    nothing.replaceChildren(`No component has “${view.query}” in its name, words or examples. `, clear);
    sort.value = view.sort;
    direction.textContent = view.descending ? "↓" : "↑";
    direction.setAttribute("aria-label", `reverse order, now ${view.descending ? "falling" : "rising"}`);
  }

  function showChosen() {
    active = traits.component;
    for (const row of rows.values()) write(row);
    const option = rows.get(active)?.option;
    if (option?.isConnected) scrollWithin(list, option);
  }

  view.changed.on(arrangeRows);
  traits.onChange(scope, ["component"], showChosen);
  arrangeRows();
  // the list has no height before it is in the page
  onWidth(list, scope, showChosen);

  return h(
    "section", { class: "nx-left", "aria-label": "list of components" },
    h("div", { class: "nx-head" }, h("h3", {}, "Components"), total, h("span", { class: "nx-spring" }), sort, direction),
    list, nothing,
  );
}
