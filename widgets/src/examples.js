/** The middle column: what the component is about in words, and its top examples with the words that carry it. */

/** @import { ComponentDetail, ExampleRow } from "./protocol.js" */
/** @import { Context } from "./explorer.js" */
import { css, over, readable } from "./colour.js";
import { button, h } from "./dom.js";
import { headline } from "./headline.js";
import { editLabel } from "./label_editor.js";
import { coefficient, percent } from "./numbers.js";
import { statusPlace } from "./status_line.js";
import { likeliest } from "./sweep.js";
import { largestShare, tokenOpacity, visibleText } from "./tokens.js";

/** @typedef {{ example: ExampleRow, option: HTMLElement, chip: HTMLElement, change: HTMLElement, words: { element: HTMLElement, share: number }[] }} Row */

/** @param {Context} context */
export function topExamples({ traits, focus, effect, theme, scope }) {
  const name = h("span", { class: "nx-label" });
  const pencil = button("rename this component", "✎", () => {
    const edited = traits.component; // the focus may move while the name is typed
    editing = true;
    editLabel(name, {
      value: traits.label(edited),
      name: `name of component ${edited}`,
      save: (text) => traits.rename(edited, text),
      finished: () => {
        editing = false;
        writeHeadline();
        pencil.focus({ preventScroll: true });
      },
    });
  }, { class: "nx-icon" });
  const number = h("span");
  const named = h("span", {}, " · ", name, " ", pencil);
  const title = h("h3", { class: "nx-title" }, number, named);
  const sentence = h("p", { class: "nx-sentence" });
  const legend = h("p", { class: "nx-legend" });
  const status = statusPlace();
  const list = h("ul", { class: "nx-examples", role: "listbox", "aria-multiselectable": "true", "aria-label": "top examples" });

  let editing = false;
  let active = 0;
  /** @type {ComponentDetail | null} */
  let drawn = null;
  /** @type {Row[]} */
  let rows = [];

  function writeHeadline() {
    const summary = traits.summary();
    number.textContent = `Component ${traits.component}`;
    named.hidden = !summary;
    if (!editing) name.textContent = traits.label(traits.component);
    const detail = focus.detail;
    sentence.textContent = summary ? headline(summary, detail && detail.top.some((row) => row.gold !== null)) : "";
  }

  function writeStatus() {
    const what = `component ${traits.component}`;
    const { state } = focus;
    if (state.status === "loading") status.waiting(what, state.progress, focus.cancel);
    else if (state.status === "failed") status.failed(what, state.message, focus.load);
    else if (state.status === "cancelled") status.cancelled(what, focus.load);
    else status.clear();
  }

  /** @param {ExampleRow} example @param {number} index @param {number} largest @returns {Row} */
  function makeRow(example, index, largest) {
    const bar = h("span", { class: "nx-bar", "aria-hidden": "true" }, h("i"));
    const filled = /** @type {HTMLElement} */ (bar.firstElementChild);
    filled.style.width = `${(100 * example.coefficient) / largest}%`;
    const meta = h("div", { class: "nx-meta" }, bar, h("span", { class: "nx-figure" }, coefficient(example.coefficient)));
    if (example.gold !== null) meta.append(h("span", { class: "nx-chip" }, `gold ${example.gold}`));
    const right = example.gold === null || !example.prediction ? null : example.gold === example.prediction;
    // the edit's effect goes into the same chip: a line of its own would make the list jump while the slider moves
    const change = h("span");
    const chip = h(
      "span", { class: `nx-chip ${right === null ? "" : right ? "nx-good" : "nx-bad"}` },
      `${right === null ? "" : right ? "✓ " : "✗ "}predicts ${example.prediction} ${percent(example.probability)}`, change,
    );
    if (example.prediction) meta.append(chip);
    for (const { name, share } of example.aside) {
      meta.append(h("span", { title: `${name} carries ${percent(share, 1)} of the coefficient` }, `${name} ${percent(share)}`));
    }
    if (example.note) meta.append(h("span", { class: "nx-note" }, example.note));

    const text = h("div", { class: "nx-text" });
    /** @type {Row["words"]} */
    const words = [];
    if (example.tokens) {
      example.tokens.forEach((token, t) => {
        if (token.space && t > 0) text.append(" ");
        const element = h("span", { class: "nx-token", title: `${percent(token.share, 1)} of the coefficient` }, visibleText(token.text));
        words.push({ element, share: token.share });
        text.append(element);
      });
    } else text.append(visibleText(example.text));

    const option = h("li", {
      class: "nx-example", role: "option", tabindex: index === active ? 0 : -1,
      "aria-label": `example ${example.row}: ${example.text}, coefficient ${coefficient(example.coefficient)}`
        + `${example.gold === null ? "" : `, gold ${example.gold}`}${example.prediction ? `, predicts ${example.prediction}` : ""}`,
    }, meta, text);
    option.addEventListener("click", () => {
      // whoever marks text with the mouse wants to copy it, not to pick the example
      const marked = getSelection();
      if (marked && !marked.isCollapsed && option.contains(marked.anchorNode)) return;
      moveTo(index);
      traits.toggle(example.row);
    });
    return { example, option, chip, change, words };
  }

  /** @param {number} index */
  function moveTo(index) {
    active = Math.max(0, Math.min(rows.length - 1, index));
    rows.forEach((row, i) => (row.option.tabIndex = i === active ? 0 : -1));
    rows[active]?.option.focus();
  }

  list.addEventListener("keydown", (event) => {
    /** @type {Record<string, number>} */
    const moves = { ArrowDown: active + 1, ArrowUp: active - 1, Home: 0, End: rows.length - 1 };
    if (event.key in moves) {
      event.preventDefault();
      moveTo(moves[event.key]);
    } else if ((event.key === "Enter" || event.key === " ") && rows[active]) {
      event.preventDefault();
      traits.toggle(rows[active].example.row);
    }
  });

  function drawRows() {
    const detail = focus.detail;
    if (detail !== drawn) {
      drawn = detail;
      active = 0;
      const largest = Math.max(1e-12, ...(detail?.top ?? []).map((row) => row.coefficient));
      rows = (detail?.top ?? []).map((example, i) => makeRow(example, i, largest));
      list.replaceChildren(...rows.map((row) => row.option));
      list.scrollTop = 0;
      if (detail && rows.length === 0) list.replaceChildren(h("li", { class: "nx-absent" }, "No example uses this component."));
    }
    colourWords();
    writeLegend();
    markPicked();
    writeChanges();
  }

  function colourWords() {
    const { hot, cold, paper, ink } = theme.colours;
    const largest = largestShare(drawn?.top ?? []);
    for (const { words } of rows) {
      for (const { element, share } of words) {
        const ground = over(share < 0 ? cold : hot, paper, tokenOpacity(share, largest));
        element.style.background = css(ground);
        element.style.color = css(readable(ground, ink));
      }
    }
  }

  function writeLegend() {
    if (!drawn || rows.length === 0 || focus.partial) return legend.replaceChildren();
    if (!drawn.top.some((row) => row.tokens)) {
      return legend.replaceChildren(`Words are not coloured: ${drawn.unavailable ?? "their shares were not computed."}`);
    }
    const negative = drawn.top.some((row) => row.tokens?.some((token) => token.share < 0));
    legend.replaceChildren(
      h("b", { class: "nx-hot" }, "orange words raise the coefficient"),
      ...(negative ? [" · ", h("b", { class: "nx-cold" }, "blue words lower it")] : []),
      ` · strongest ${percent(largestShare(drawn.top))} · click an example to pick it`,
    );
  }

  function markPicked() {
    const picked = new Set(traits.selection);
    for (const { option, example } of rows) option.setAttribute("aria-selected", String(picked.has(example.row)));
  }

  function writeChanges() {
    const shown = drawn && effect.shown;
    const classes = traits.overview?.classes ?? [];
    rows.forEach(({ example, chip, change }, i) => {
      const after = shown && shown.source !== "original" ? shown.after.probabilities[i] : undefined;
      const is = after ? classes[likeliest(after)] : example.prediction;
      change.textContent = after ? ` → ${is} ${percent(after[likeliest(after)])}` : "";
      chip.classList.toggle("nx-changed", is !== example.prediction);
    });
  }

  focus.changed.on(() => {
    writeHeadline();
    writeStatus();
    drawRows();
  });
  effect.changed.on(writeChanges);
  theme.changed.on(colourWords);
  traits.onChange(scope, ["labels"], writeHeadline);
  traits.onChange(scope, ["selection"], markPicked);

  return h("section", { class: "nx-middle", "aria-label": "component in focus" }, title, sentence, status.element, list, legend);
}
