/** All components in figures. */

/** @import { ComponentSummary } from "./protocol.js" */
/** @import { Column, Said } from "./columns.js" */
/** @import { Context } from "./explorer.js" */
import { COLUMNS, asTsv } from "./columns.js";
import { copyText } from "./copy.js";
import { button, focused, h, scrollWithin } from "./dom.js";
import { line } from "./figures.js";
import { smallHistogram } from "./histogram.js";
import { editLabel } from "./label_editor.js";
import { labelOf } from "./listing.js";
import { onWidth } from "./resize.js";

/** @typedef {{ summary: ComponentSummary, row: HTMLTableRowElement, cells: HTMLElement[], star: HTMLButtonElement, editing: boolean }} Line */

const HISTOGRAM_WIDTH = 74;
/** At least. */
const NAME_WIDTH = 130;
const NAME = COLUMNS.findIndex(({ sort }) => sort === "name");

/** @param {Context} context */
export function componentTable({ traits, view, scope }) {
  const components = traits.overview?.components ?? [];
  const shown = useful(components);
  const said = h("span", { class: "nx-dim", role: "status" });
  const nothing = h("p", { class: "nx-absent", hidden: true });
  const clear = button("clear search", "Show all", () => view.search(""));
  const copy = button("copy the table as tab-separated text", "Copy", async () => {
    const done = await copyText(place, asTsv(view.components, spoken()));
    said.textContent = done ? `${view.components.length} rows copied, for a spreadsheet` : "the browser does not let this page write to the clipboard";
  });

  const heads = shown.map((column) => {
    const head = h("th", { role: "columnheader", scope: "col", class: column.figure ? "nx-right-aligned" : null, "data-column": column.sort });
    const sort = button(`sort by ${column.name === "★" ? "star" : column.name}`, "", () => view.sortBy(column.sort), { class: "nx-sort", title: column.title });
    const arrow = h("span", { class: "nx-arrow", "aria-hidden": "true" });
    sort.append(column.name, arrow);
    head.append(sort);
    return { column, head, arrow };
  });
  const body = h("tbody", { role: "rowgroup" });
  const top = h("tr", { role: "row" }, ...heads.map(({ head }) => head));
  heads[NAME].head.after(h("th", { role: "columnheader", scope: "col", class: "nx-dim", title: "how many examples have which coefficient; heights are logarithmic" }, "histogram"));
  // laid out as a grid, in which a browser skips the rows that are out of sight: a table would measure all cells of all rows; hence the roles
  const grid = h("table", { class: "nx-table", role: "grid", "aria-label": "all components in figures" }, h("thead", { role: "rowgroup" }, top), body);
  const widths = shown.map(({ width }) => (width ? `${width}px` : `minmax(${NAME_WIDTH}px, 1fr)`));
  grid.style.setProperty("--columns", [...widths.slice(0, NAME + 1), `${HISTOGRAM_WIDTH}px`, ...widths.slice(NAME + 1)].join(" "));
  grid.style.minWidth = `${shown.reduce((sum, { width }) => sum + (width ?? NAME_WIDTH), HISTOGRAM_WIDTH)}px`;
  const place = h("div", { class: "nx-tableplace" }, grid);

  /** @type {Map<number, Line>} */
  const lines = new Map();
  let active = traits.component;
  let chosen = traits.component;

  for (const summary of components) {
    const number = summary.component;
    const star = button(`star component ${number}`, "", () => traits.star(number), { class: "nx-icon nx-star", tabindex: -1, title: "star (key s)" });
    const cells = shown.map((column, i) => h(i === NAME ? "th" : "td", {
      class: column.figure ? "nx-right-aligned" : null, "data-column": column.sort, role: i === NAME ? "rowheader" : "gridcell", scope: i === NAME ? "row" : null,
    }));
    cells[0].append(star);
    cells[NAME].append(h("span", { class: "nx-label" }));
    cells.find((_, i) => shown[i].sort === "share")?.style.setProperty("--at", `${100 * summary.share / largestShare(components)}%`);
    const row = h("tr", { class: "nx-line", role: "row", tabindex: -1, "aria-selected": "false" }, ...cells);
    cells[NAME].after(h("td", { role: "gridcell" }, smallHistogram(summary.histogram)));
    const one = { summary, row, cells, star, editing: false };
    row.addEventListener("click", () => {
      moveTo(number);
      traits.update({ component: number });
    });
    cells[NAME].addEventListener("dblclick", () => edit(one));
    lines.set(number, one);
  }

  /** @returns {Said} */
  function spoken() {
    return { labels: traits.get("labels"), notes: traits.get("notes"), stars: new Set(traits.get("stars")), examples: traits.overview?.n_examples ?? 0 };
  }

  /** @param {Line} one */
  function edit(one) {
    if (one.editing) return;
    one.editing = true;
    const number = one.summary.component;
    const label = /** @type {HTMLElement} */ (one.cells[NAME].firstChild);
    editLabel(label, {
      value: traits.label(number),
      name: `name of component ${number}`,
      save: (text) => traits.rename(number, text),
      finished: () => {
        one.editing = false;
        write();
        if (lines.get(active) === one) one.row.focus({ preventScroll: true });
      },
    });
  }

  function write() {
    const now = spoken();
    for (const { summary, row, cells, star, editing } of lines.values()) {
      const number = summary.component;
      const marked = now.stars.has(number);
      row.classList.toggle("nx-starred", marked);
      star.setAttribute("aria-pressed", String(marked));
      shown.forEach((column, i) => {
        const text = column.cell(summary, now);
        const into = i === 0 ? star : i === NAME ? /** @type {HTMLElement} */ (cells[i].firstChild) : cells[i];
        if (into.textContent !== text && !(i === NAME && editing)) into.textContent = text;
      });
      row.title = [line(labelOf(summary, now.labels)), view.why(number) && `found: ${view.why(number)}`].filter(Boolean).join("\n");
    }
  }

  /** @param {number} number */
  function activate(number) {
    const [before, now] = [lines.get(active)?.row, lines.get(number)?.row];
    if (before) before.tabIndex = -1;
    if (now) now.tabIndex = 0;
    active = number;
  }

  /** @param {number} number */
  function moveTo(number) {
    activate(number);
    const row = lines.get(number)?.row;
    if (!row) return;
    row.focus({ preventScroll: true });
    bring(row);
  }

  /** The heads stand over the rows. @param {HTMLElement} row */
  function bring(row) {
    scrollWithin(place, row);
    const hidden = place.getBoundingClientRect().top + top.offsetHeight - row.getBoundingClientRect().top;
    if (hidden > 0) place.scrollTop -= hidden;
  }

  body.addEventListener("keydown", (event) => {
    const order = view.components.map(({ component }) => component);
    const at = order.indexOf(active);
    /** @type {Record<string, number>} */
    const moves = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: order.length - 1, PageDown: at + 10, PageUp: at - 10 };
    if (event.ctrlKey || event.metaKey || event.altKey || order.length === 0) return;
    if (event.key in moves) moveTo(order[Math.max(0, Math.min(order.length - 1, moves[event.key]))]);
    else if (event.key === "ArrowRight") place.scrollLeft += 80;
    else if (event.key === "ArrowLeft") place.scrollLeft -= 80;
    else if (event.key === "Enter" || event.key === " ") traits.update({ component: active });
    else if (event.key === "s") traits.star(active);
    else if (event.key === "F2") edit(/** @type {Line} */ (lines.get(active)));
    else return;
    event.preventDefault();
  });

  function arrangeRows() {
    const order = view.components;
    if (!order.some(({ component }) => component === active)) {
      activate(order.find(({ component }) => component === traits.component)?.component ?? order[0]?.component ?? active);
    }
    const holder = focused(body);
    const rows = order.map(({ component }) => /** @type {Line} */ (lines.get(component)).row);
    if (rows.length !== body.children.length || rows.some((row, i) => row !== body.children[i])) {
      body.replaceChildren(...rows);
      if (holder?.isConnected) holder.focus({ preventScroll: true });
    }
    for (const { column, head, arrow } of heads) {
      const sorted = column.sort === view.sort;
      if (sorted) head.setAttribute("aria-sort", view.descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
      arrow.textContent = sorted ? (view.descending ? "↓" : "↑") : "";
    }
    said.textContent = view.searching ? "searching words and examples …" : view.trouble ? `only names were searched: ${view.trouble}`
      : order.length === lines.size ? `${order.length} components` : `${order.length} of ${lines.size} components`;
    nothing.hidden = order.length > 0 || view.searching;
    if (!nothing.hidden) nothing.replaceChildren(`No component has “${line(view.query)}” in its name, words or examples. `, clear);
    write();
  }

  function showChosen() {
    lines.get(chosen)?.row.setAttribute("aria-selected", "false");
    chosen = traits.component;
    const row = lines.get(chosen)?.row;
    row?.setAttribute("aria-selected", "true");
    activate(chosen);
    if (row?.isConnected) bring(row);
  }

  view.changed.on(arrangeRows);
  traits.onChange(scope, ["component"], showChosen);
  arrangeRows();
  showChosen();
  onWidth(place, scope, showChosen);

  return h("section", { "aria-label": "table of components" },
    h("div", { class: "nx-head" }, h("h3", {}, "Components"), said, h("span", { class: "nx-spring" }), copy), place, nothing,
    h("p", { class: "nx-legend" }, "↑ ↓ move · Enter shows the component · s stars · F2 renames · a KL ratio is there once a component's edits were measured"));
}

/** Without gold labels, or without a finer column, there is nothing to say of them. @param {ComponentSummary[]} components @returns {Column[]} */
function useful(components) {
  /** @type {Partial<Record<Column["sort"], (summary: ComponentSummary) => unknown>>} */
  const needs = { label: ({ main_label }) => main_label, purity: ({ main_label }) => main_label, fine: ({ fine }) => fine, errors: ({ errors }) => errors !== null };
  return COLUMNS.filter(({ sort }) => components.some(needs[sort] ?? (() => true)));
}

/** @param {ComponentSummary[]} components */
function largestShare(components) {
  return Math.max(1e-12, ...components.map(({ share }) => share));
}
