/** What else is known of the component in focus: words and labels commoner among its top examples, components like it, a note. */

/** @import { ComponentDetail, Enriched } from "./protocol.js" */
/** @import { Context } from "./explorer.js" */
import { button, focused, h } from "./dom.js";
import { percent } from "./numbers.js";
import { visibleText } from "./tokens.js";

/** Words that stand in the line of a closed part. */
const FEW = 4;

/** @typedef {ReturnType<typeof fold>} Fold */

/** A part that is folded to one line. @param {string} name @param {string} label */
function fold(name, label) {
  const line = h("span", { class: "nx-dim" });
  const body = h("div", { class: "nx-foldbody" });
  const element = h("details", { class: "nx-fold", "aria-label": label }, h("summary", {}, name, " ", line), body);
  return { element, line, body };
}

/** @param {Context} context */
export function about({ traits, focus, scope }) {
  const words = fold("Commoner here", "words and labels commoner among the top examples");
  const kin = fold("Alike", "components like this one");
  const note = fold("Note", "note on this component");
  const area = h("textarea", { rows: 3, maxlength: 4000, placeholder: "kept with the decomposition" });
  let edited = traits.component;
  note.body.append(area);
  area.addEventListener("focus", () => (edited = traits.component));
  const save = () => {
    if (area.value.trim() !== (traits.get("notes")[String(edited)] ?? "")) traits.note(edited, area.value);
  };
  area.addEventListener("change", save);
  area.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
  });

  function writeNote() {
    const text = traits.get("notes")[String(traits.component)] ?? "";
    note.line.textContent = text ? visibleText(text.split("\n")[0], 80) : "none yet";
    area.setAttribute("aria-label", `note on component ${traits.component}`);
    // whoever is writing keeps what they wrote
    if (focused(note.element) === area && edited === traits.component) return;
    edited = traits.component;
    area.value = text;
  }

  /** @param {ComponentDetail | null} detail */
  function writeWords(detail) {
    const lists = detail?.enriched ?? [];
    words.element.hidden = lists.length === 0;
    words.line.textContent = lists.flatMap(({ values }) => values.slice(0, FEW).map(({ name }) => visibleText(name, 30))).slice(0, 2 * FEW).join(" · ");
    words.body.replaceChildren(h("table", { class: "nx-enriched" },
      h("thead", {}, h("tr", {}, ...["name", "column", "of the top examples", "95 % interval", "of all"].map((name) => h("th", { scope: "col" }, name)))),
      ...lists.map(({ column, values }) => h("tbody", {}, ...values.map((value) => line(column, value))))));
  }

  /** @param {ComponentDetail | null} detail */
  function writeKin(detail) {
    const near = detail?.neighbours ?? [];
    kin.element.hidden = near.length === 0;
    kin.line.textContent = near.slice(0, FEW).map(({ component }) => `${component} ${visibleText(traits.label(component), 24)}`).join(" · ");
    const pinned = traits.get("pinned");
    kin.body.replaceChildren(h("table", { class: "nx-kin" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "component"), h("th", { scope: "col", title: "cosine between the directions, without its sign" }, "|cos|"),
        h("th", { scope: "col", title: "correlation of the coefficients over all examples" }, "together"), h("th", { scope: "col" }, h("span", { class: "nx-hush" }, "pin")))),
      h("tbody", {}, ...near.map(({ component, cosine, together }) => {
        const go = h("button", { type: "button", class: "nx-link", title: "look at it; with Shift: pin it for comparison" }, `${component} · ${visibleText(traits.label(component), 80)}`);
        go.addEventListener("click", (event) => traits.update(event.shiftKey ? { pinned: component } : { component }));
        const pin = button(`pin component ${component} for comparison`, "pin", () => traits.update({ pinned: pinned === component ? -1 : component }), { class: "nx-icon", "aria-pressed": String(pinned === component) });
        return h("tr", {}, h("td", {}, go), h("td", { class: "nx-number" }, cosine.toFixed(2)), h("td", { class: "nx-number" }, together.toFixed(2).replace("-", "\u2212")), h("td", {}, pin));
      }))));
  }

  let drawn = /** @type {ComponentDetail | null} */ (null);
  focus.changed.on(() => {
    if (focus.detail !== drawn) {
      drawn = focus.detail;
      writeWords(drawn);
      writeKin(drawn);
    }
    writeNote();
  });
  traits.onChange(scope, ["notes"], writeNote);
  traits.onChange(scope, ["labels", "pinned"], () => writeKin(drawn));
  writeWords(null);
  writeKin(null);
  writeNote();
  return h("div", { class: "nx-about" }, words.element, kin.element, note.element);
}

/** One word with its count, its interval as a picture, and its share of all examples. @param {string} column @param {Enriched} value */
function line(column, { name, count, of, low, high, everywhere }) {
  const range = h("i", { class: "nx-range" });
  range.style.left = `${100 * low}%`;
  range.style.width = `${100 * (high - low)}%`;
  const dot = h("i", { class: "nx-dot" });
  dot.style.left = `${(100 * count) / of}%`;
  const all = h("i", { class: "nx-tick", title: `of all: ${percent(everywhere, 1)}` });
  all.style.left = `${100 * everywhere}%`;
  return h("tr", {}, h("th", { scope: "row" }, visibleText(name, 60)), h("td", { class: "nx-dim" }, visibleText(column, 40)), h("td", { class: "nx-number" }, `${count} of ${of}`),
    h("td", {}, h("span", { class: "nx-interval", role: "img", "aria-label": `between ${percent(low)} and ${percent(high)}`, title: `${percent(low)} to ${percent(high)}` }, range, dot, all)),
    h("td", { class: "nx-number" }, percent(everywhere, everywhere < 0.1 ? 1 : 0)));
}
