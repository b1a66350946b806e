/**
 * The bar of long work in a notebook: what is done, how far, how long still, and a button that stops it. A widget of its
 * own: its last state becomes a line of text in the notebook, which Python writes.
 */

/** @import { AnyModel } from "@anywidget/types" */
import { h } from "./dom.js";
import { createScope } from "./scope.js";

/**
 * @typedef {object} At
 * @property {string} what is being done
 * @property {number} done
 * @property {number | null} total null where nobody knows
 * @property {string} units what is counted
 * @property {string} note the latest figure of the work itself
 * @property {number | null} left seconds, by the pace so far
 * @property {string} end the last words; empty while the work runs
 */

/** A kernel that hears messages while a cell runs answers in far less; others answer when the cell is over. */
export const HEARD_WITHIN_MS = 3000;
const DEAF = "This notebook passes no message on while a cell runs; its own Interrupt button (■) stops the work just as well.";

/** "54 s", "2 min 5 s", "1 h 12 min" @param {number} seconds */
export function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/**
 * "310 of 2000 examples · 44 s left"
 * @param {At} at
 * @param {number} since seconds since this was told
 */
export function words({ done, total, units, note, left }, since) {
  const remaining = left === null ? null : left - since;
  return [
    total === null ? `${done} ${units}` : `${done} of ${total} ${units}`,
    remaining === null ? "" : remaining < 1 ? "a moment left" : `${span(remaining)} left`,
    note,
  ].filter(Boolean).join(" · ");
}

/** @param {{ model: AnyModel<any>, el: HTMLElement }} place */
function render({ model, el }) {
  const scope = createScope();
  /** @returns {At} */
  const at = () => model.get("at");
  const what = h("b");
  const fill = h("span");
  const bar = h("div", { class: "nx-bar", role: "progressbar", "aria-valuemin": 0 }, fill);
  const text = h("span", { class: "nx-words" });
  const cancel = h("button", { type: "button" }, "Cancel");
  const hint = h("span", { class: "nx-hint", role: "status" });
  const root = h("div", { class: "npeff-progress", "data-lm-suppress-shortcuts": "true" }, what, bar, text, cancel, hint);
  for (const type of ["keydown", "keypress", "keyup"]) root.addEventListener(type, (event) => event.stopPropagation());

  let told = Date.now();
  let asked = false;

  function show() {
    const now = at();
    const running = !now.end;
    for (const element of [bar, text, cancel, hint]) element.hidden = !running;
    what.textContent = running ? now.what : now.end;
    if (!running) return;
    const said = words(now, (Date.now() - told) / 1000);
    text.textContent = said;
    bar.setAttribute("aria-label", now.what);
    bar.setAttribute("aria-valuetext", said);
    bar.classList.toggle("nx-endless", now.total === null);
    if (now.total !== null) {
      bar.setAttribute("aria-valuemax", String(now.total));
      bar.setAttribute("aria-valuenow", String(now.done));
      fill.style.width = `${Math.min(100, (100 * now.done) / Math.max(1, now.total))}%`;
    }
    cancel.setAttribute("aria-label", `cancel ${now.what}`);
  }

  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let patience;
  /** @param {{ ask: "hear" | "cancel" }} message */
  function tell(message) {
    clearTimeout(patience);
    patience = setTimeout(() => {
      cancel.disabled = true;
      hint.textContent = DEAF;
    }, HEARD_WITHIN_MS);
    try {
      model.send(message);
    } catch {
      // no kernel: there is no work to stop either
      cancel.disabled = true;
    }
  }

  /** @param {any} message */
  function receive(message) {
    if (!message?.heard) return;
    clearTimeout(patience);
    cancel.disabled = asked;
    hint.textContent = asked ? "stops when the piece at hand is done" : "";
  }

  cancel.addEventListener("click", () => {
    asked = true;
    cancel.disabled = true;
    hint.textContent = "cancelling …";
    tell({ ask: "cancel" });
  });
  model.on("msg:custom", receive);
  const update = () => {
    told = Date.now();
    show();
  };
  model.on("change:at", update);
  const clock = setInterval(show, 1000);
  scope.add(() => {
    model.off("msg:custom", receive);
    model.off("change:at", update);
    clearInterval(clock);
    clearTimeout(patience);
    root.remove();
  });
  show();
  if (!at().end) tell({ ask: "hear" });
  el.append(root);
  return scope.dispose;
}

export default { render };
