/** The left column: every component with its number, star, name, histogram and the figure that it is sorted by. */

/** @import { ComponentSummary } from "./protocol.js" */
/** @import { Context } from "./explorer.js" */
import { button, focused, h, scrollWithin } from "./dom.js";
import { figureOf, inFigures, line } from "./figures.js";
import { smallHistogram } from "./histogram.js";
import { editLabel } from "./label_editor.js";
import { SORTS, labelOf } from "./listing.js";
import { count } from "./numbers.js";
import { onWidth } from "./resize.js";

/** @typedef {{ summary: ComponentSummary, option: HTMLElement, star: HTMLElement, label: HTMLElement, value: HTMLElement, why: HTMLElement, editing: boolean }} Row */

/** @param {Context} context */
export function componentList({ traits, view, scope }) {
  const list = h("ul", { class: "nx-components", role: "listbox", "aria-label": "components" });
  const total = h("span", { class: "nx-dim" });
  const searching = h("p", { class: "nx-searching nx-dim", role: "status", hidden: true });
  const nothing = h("p", { class: "nx-absent", hidden: true });
  const clear = button("clear search", "Show all", () => view.search(""));
  const sort = h("select", { "aria-label": "sort components", title: "sort by" });
  for (const { key, name } of SORTS) sort.append(h("option", { value: key }, name));
  sort.addEventListener("change", () => view.sortBy(/** @type {any} */ (sort.value)));
  const direction = button("reverse order", "↓", () => view.sortBy(view.sort), { class: "nx-icon" });

  /** @type {Map<number, Row>} */
  const rows = new Map();
  /** The one option that Tab reaches; arrows move it. */
  let active = traits.component;
  let chosen = traits.component;

  for (const summary of traits.overview?.components ?? []) {
    const number = summary.component;
    // what an option holds is no control of its own to a screen reader; the key "s" does what a click on the star does
    const star = h("span", { class: "nx-star", "aria-hidden": "true", title: "star (key s)" });
    star.addEventListener("click", (event) => {
      event.stopPropagation();
      traits.star(number);
    });
    const label = h("span", { class: "nx-label" });
    const value = h("span", { class: "nx-value" });
    const why = h("span", { class: "nx-why", hidden: true });
    const option = h("li", { class: "nx-component", role: "option", "aria-selected": "false", tabindex: -1 },
      h("span", { class: "nx-number" }, number), " ", star, label, " ", smallHistogram(summary.histogram), value, " ", why);
    const row = { summary, option, star, label, value, why, editing: false };
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
        write([row]);
        if (rows.get(active) === row) row.option.focus({ preventScroll: true });
      },
    });
  }

  /** What a row says; which one is chosen and which Tab reaches is said elsewhere. @param {Iterable<Row>} some */
  function write(some) {
    const [labels, notes, stars, key] = [traits.get("labels"), traits.get("notes"), new Set(traits.get("stars")), view.sort];
    for (const { summary, option, star, label, value, why, editing } of some) {
      const number = summary.component;
      const name = labelOf(summary, labels);
      const note = notes[String(number)];
      const found = view.why(number);
      const short = found.replace(" top examples", "");
      const figure = figureOf(summary, key);
      const marked = stars.has(number);
      // in the order in which it is seen, so that people who speak to their computer can say what they see
      set(option, "aria-label", [`component ${number}: ${line(name)}`, figure, short, marked ? "starred" : ""].filter(Boolean).join(", "));
      set(option, "title", [line(name), inFigures(summary), note && line(note), found && `found: ${found}`].filter(Boolean).join("\n"));
      option.classList.toggle("nx-starred", marked);
      text(star, marked ? "★" : "☆");
      if (!editing) text(label, line(name));
      text(value, figure);
      text(why, short);
      why.hidden = !found;
    }
  }

  /** @param {number} number */
  function activate(number) {
    const [before, now] = [rows.get(active)?.option, rows.get(number)?.option];
    if (before) before.tabIndex = -1;
    if (now) now.tabIndex = 0;
    active = number;
  }

  /** @param {number} number */
  function moveTo(number) {
    activate(number);
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
    if (event.ctrlKey || event.metaKey || event.altKey || shown.length === 0) return;
    if (event.key in moves) moveTo(shown[Math.max(0, Math.min(shown.length - 1, moves[event.key]))]);
    else if (event.key === "Enter" || event.key === " ") traits.update({ component: active });
    else if (event.key === "s") traits.star(active);
    else if (event.key === "F2") edit(/** @type {Row} */ (rows.get(active)));
    else return;
    event.preventDefault();
  });

  function arrangeRows() {
    const shown = view.components;
    if (!shown.some(({ component }) => component === active)) {
      activate(shown.find(({ component }) => component === traits.component)?.component ?? shown[0]?.component ?? active);
    }
    const holder = focused(list);
    const options = shown.map(({ component }) => /** @type {Row} */ (rows.get(component)).option);
    const same = options.length === list.children.length && options.every((option, i) => option === list.children[i]);
    if (!same) {
      list.replaceChildren(...options);
      if (holder?.isConnected) holder.focus({ preventScroll: true });
    }
    write(rows.values());
    text(total, shown.length === rows.size ? count(rows.size) : `${shown.length} of ${rows.size}`);
    searching.hidden = !view.searching && !view.trouble;
    text(searching, view.searching ? "searching words and examples …" : view.trouble && `only names were searched: ${view.trouble}`);
    nothing.hidden = shown.length > 0 || view.searching;
    if (!nothing.hidden) nothing.replaceChildren(`No component has “${line(view.query)}” in its name, words or examples. `, clear);
    sort.value = view.sort;
    text(direction, view.descending ? "↓" : "↑");
    set(direction, "aria-label", `reverse order, now ${view.descending ? "falling" : "rising"}`);
  }

  function showChosen() {
    rows.get(chosen)?.option.setAttribute("aria-selected", "false");
    chosen = traits.component;
    const option = rows.get(chosen)?.option;
    option?.setAttribute("aria-selected", "true");
    activate(chosen);
    if (option?.isConnected) scrollWithin(list, option);
  }

  view.changed.on(arrangeRows);
  traits.onChange(scope, ["component"], showChosen);
  arrangeRows();
  showChosen();
  // the list has no height before it is in the page
  onWidth(list, scope, showChosen);

  return h(
    "section", { class: "nx-left", "aria-label": "list of components" },
    h("div", { class: "nx-head" }, h("h3", {}, "Components"), total, h("span", { class: "nx-spring" }), sort, direction),
    searching, list, nothing,
  );
}

/** Writing what stands there already would still make the browser lay out again. @param {Element} element @param {string} value */
function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

/** @param {Element} element @param {string} name @param {string} value */
function set(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}
