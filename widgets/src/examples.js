/** The middle column: what the component is about in words, and its examples with the words that carry it. */

/** @import { BandSample, ComponentDetail, ExampleRow } from "./protocol.js" */
/** @import { Context } from "./explorer.js" */
/** @import { Row } from "./example_row.js" */
/** @import { Pending } from "./requests.js" */
/** @import { Colouring, Spoken } from "./token_store.js" */
import { about } from "./about.js";
import { TOP, bandName, bandPicture } from "./bands.js";
import { button, focused, h } from "./dom.js";
import { colour, exampleRow, worth } from "./example_row.js";
import { headline } from "./headline.js";
import { editLabel } from "./label_editor.js";
import { coefficient, percent } from "./numbers.js";
import { pinnedExamples } from "./pinned.js";
import { Cancelled } from "./requests.js";
import { statusPlace } from "./status_line.js";
import { toTrace, traces } from "./to_trace.js";
import { createTokenStore } from "./token_store.js";
import { part, visibleText } from "./tokens.js";

/** @typedef {{ rows: BandSample } | { pending: Pending<BandSample> } | { message: string } | { cancelled: true }} Sample */

/** @param {Context} context */
export function topExamples(context) {
  const { traits, focus, effect, theme, examples, requests, scope } = context;
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
  const star = button("star this component", "☆", () => traits.star(traits.component), { class: "nx-icon nx-star" });
  const pin = button("pin this component for comparison", "pin", () => traits.update({ pinned: traits.get("pinned") === traits.component ? -1 : traits.component }), { class: "nx-icon nx-pin" });
  const number = h("span");
  const named = h("span", {}, " · ", name, " ", pencil, star, pin);
  const title = h("h3", { class: "nx-title" }, number, named);
  const sentence = h("p", { class: "nx-sentence" });
  const bands = bandPicture((chosen) => {
    band = chosen;
    drawRows();
  });
  const legend = h("p", { class: "nx-legend" });
  const readout = h("span", { class: "nx-wordout", "aria-live": "polite" });
  const status = statusPlace();
  const wordStatus = statusPlace();
  const list = h("ul", { class: "nx-examples", role: "listbox", "aria-multiselectable": "true", "aria-label": "top examples" });
  const store = createTokenStore(requests);

  const mode = choice("what colours words", [["share", "share of the coefficient"], ["sensitivity", "input sensitivity"]], (value) => traits.update({ tokens: /** @type {any} */ (value) }));
  const pieces = choice("words or tokens", [["words", "words"], ["tokens", "raw tokens"]], (value) => traits.update({ pieces: value === "tokens" }));
  const extent = choice("how much of long texts", [["around", "around the strongest word"], ["whole", "whole texts"]], () => fillRows());
  const controls = h("div", { class: "nx-controls" }, mode, pieces, extent);

  // the one example that buttons are about: an option of a list box cannot hold buttons of its own
  const which = h("span", { class: "nx-dim" });
  const pick = button("pick this example", "pick", () => traits.toggle(rows[active].example.row));
  const unfold = button("show what is alike", "", () => toggleAlike(active));
  const trace = button("trace this example", "trace", () => toTrace(traits, rows[active].example.row));
  const actions = h("div", { class: "nx-actions", role: "group", "aria-label": "this example", hidden: true }, which, pick, unfold, trace, readout);

  let editing = false;
  let active = 0;
  /** Which word of the active example the arrows are at. */
  let word = -1;
  let band = TOP;
  /** @type {Map<string, Sample>} "component band" -> some of its examples */
  const samples = new Map();
  /** @type {unknown} what the rows on the screen were made from */
  let drawn = null;
  /** @type {Row[]} */
  let rows = [];
  /** Rows whose near-duplicates are shown. @type {Set<number>} */
  const unfolded = new Set();
  let component = traits.component;

  function writeHeadline() {
    const summary = traits.summary();
    number.textContent = `Component ${traits.component}`;
    named.hidden = !summary;
    if (!editing) name.textContent = visibleText(traits.label(traits.component), 200);
    const starred = traits.get("stars").includes(traits.component);
    star.textContent = starred ? "★" : "☆";
    star.setAttribute("aria-pressed", String(starred));
    const pinned = traits.get("pinned") === traits.component;
    pin.setAttribute("aria-pressed", String(pinned));
    const detail = focus.detail;
    sentence.textContent = summary ? headline(summary, detail && detail.top.some((row) => row.gold !== null)) : "";
    bands.draw(summary, detail?.bands ?? [], detail?.top.length ?? 0, band);
  }

  function writeStatus() {
    const what = `component ${traits.component}`;
    const { state } = focus;
    if (state.status === "loading") status.waiting(what, state.progress, focus.cancel);
    else if (state.status === "failed") status.failed(what, state.message, focus.load);
    else if (state.status === "cancelled") status.cancelled(what, focus.load);
    else status.clear();
  }

  // ---------------------------------------------------------------------------------------------------------- which examples

  /** The examples on the screen: the top ones, or some of a band; null while they are on their way. @returns {ExampleRow[] | null} */
  function chosen() {
    const detail = focus.detail;
    if (!detail || band === TOP || !detail.bands[band]) return detail?.top ?? [];
    const sample = samples.get(`${detail.component} ${band}`);
    if (!sample) ask(detail.component, band);
    return sample && "rows" in sample ? sample.rows : null;
  }

  /** @param {number} component @param {number} number */
  function ask(component, number) {
    const key = `${component} ${number}`;
    const pending = requests.ask({ ask: "band", component, band: number });
    samples.set(key, { pending });
    pending.promise.then(
      (rows) => samples.set(key, { rows }),
      (error) => samples.set(key, error instanceof Cancelled ? { cancelled: true } : { message: error.message }),
    ).then(drawRows);
  }

  function writeSample() {
    const detail = focus.detail;
    const key = `${traits.component} ${band}`;
    const sample = detail && band !== TOP ? samples.get(key) : undefined;
    if (!sample || "rows" in sample) return false;
    const what = `examples of ${bandName(/** @type {ComponentDetail} */ (detail).bands[band])}`;
    const again = () => {
      samples.delete(key);
      drawRows();
    };
    if ("pending" in sample) wordStatus.waiting(what, null, () => sample.pending.cancel());
    else if ("message" in sample) wordStatus.failed(what, sample.message, again);
    else wordStatus.cancelled(what, again);
    return true;
  }

  // ---------------------------------------------------------------------------------------------------------- their rows

  function drawRows() {
    if (component !== traits.component) {
      component = traits.component;
      band = TOP;
      unfolded.clear();
    }
    writeHeadline();
    const now = chosen();
    if (now !== drawn) {
      drawn = now;
      active = 0;
      word = -1;
      bands.mark(null);
      // an example that is wholly one component has coefficient 1; a band is compared with the component's own largest
      const largest = Math.max(1e-12, band === TOP ? 0 : traits.summary()?.max_coefficient ?? 0, ...(now ?? []).map((row) => row.coefficient));
      rows = (now ?? []).map((example, i) => makeRow(exampleRow(example, largest), i));
      list.replaceChildren(...rows.map((row) => row.element));
      list.scrollTop = 0;
      list.setAttribute("aria-label", band === TOP ? "top examples" : `examples of ${bandName(/** @type {ComponentDetail} */ (focus.detail).bands[band])}`);
      if (focus.detail && now && rows.length === 0) list.replaceChildren(h("li", { class: "nx-absent" }, "No example uses this component."));
    }
    fillRows();
    markPicked();
    writeChanges();
  }

  /** @param {Row} row @param {number} index */
  function makeRow(row, index) {
    const { element, example } = row;
    element.setAttribute("role", "option");
    element.tabIndex = index === active ? 0 : -1;
    element.addEventListener("click", () => {
      // whoever marks text with the mouse wants to copy it, not to pick the example
      const marked = getSelection();
      if (marked && !marked.isCollapsed && element.contains(marked.anchorNode)) return;
      moveTo(index);
      traits.toggle(example.row);
    });
    element.addEventListener("dblclick", () => toTrace(traits, example.row));
    element.addEventListener("pointerenter", () => bands.mark(example.coefficient));
    element.addEventListener("pointerleave", () => bands.mark(focused(list) ? rows[active].example.coefficient : null));
    element.addEventListener("focus", () => {
      active = index;
      bands.mark(example.coefficient);
      writeActions();
    });
    // for the mouse; by keyboard the same is done with the buttons below the list
    if (example.duplicates?.length) row.acts.append(act(`and ${example.duplicates.length} alike`, () => toggleAlike(index)));
    if (traces(traits)) {
      // over the line's end and only under the mouse: in the line it would wrap, and the list jump, when a chip grows with the slider
      const corner = act("trace", () => toTrace(traits, example.row));
      corner.classList.add("nx-corner");
      element.append(corner);
    }
    return row;
  }

  /** @param {number} index */
  function toggleAlike(index) {
    const { row } = rows[index].example;
    if (!unfolded.delete(row)) unfolded.add(row);
    writeAlike(rows[index]);
    writeActions();
  }

  /** The near-duplicates of one example, if they are asked for. @param {Row} row */
  function writeAlike(row) {
    row.element.querySelector(".nx-alike")?.remove();
    const alike = row.example.duplicates ?? [];
    if (!unfolded.has(row.example.row) || alike.length === 0) return;
    examples.want(alike);
    row.element.append(h("div", { class: "nx-alike" }, ...alike.map((number) => {
      const detail = examples.get(number);
      const value = detail?.coefficients.find((one) => one.component === component)?.value;
      return h("div", {}, h("span", { class: "nx-figure nx-dim" }, value === undefined ? "" : coefficient(value)), detail ? visibleText(detail.text) : examples.trouble(number) ?? "…");
    })));
  }

  // ---------------------------------------------------------------------------------------------------------- their words

  /** @returns {Colouring} */
  const way = () => ({ component: traits.component, mode: traits.get("tokens"), pieces: traits.get("pieces") });

  /** The words of one example as they are to be coloured; null where that is not known. @param {ExampleRow} example @returns {Spoken | null} */
  function spokenOf(example) {
    const asked = way();
    if (asked.mode === "share" && !asked.pieces && example.tokens) return { tokens: example.tokens, aside: example.aside };
    return store.get(asked, example.row);
  }

  /** Can this component's words be split at all? */
  const splits = () => focus.detail?.top.some((row) => row.tokens) ?? false;

  function fillRows() {
    const asked = way();
    mode.value = asked.mode;
    pieces.value = asked.pieces ? "tokens" : "words";
    const waits = writeSample();
    const missing = rows.filter(({ example }) => !spokenOf(example)).map(({ example }) => example.row);
    const wanted = !focus.partial && splits() && missing.length > 0 && (traits.overview?.live ?? false);
    if (wanted) store.want(asked, missing);
    else store.cancel();
    let long = false;
    for (const row of rows) {
      // while another colouring is on its way, and where it cannot be had, what is known is shown
      const known = spokenOf(row.example);
      row.speak(known, asked.mode, extent.value === "whole");
      row.words.forEach(({ element }, i) => element.addEventListener("pointerenter", () => tell(row, i)));
      long ||= known !== null && part(known.tokens.length, 0)[1] < known.tokens.length;
      writeAlike(row);
    }
    controls.hidden = !splits();
    extent.hidden = !long;
    if (!waits) writeWordStatus(asked, wanted);
    colourWords();
    writeActions();
  }

  /** @param {Colouring} asked @param {boolean} wanted */
  function writeWordStatus(asked, wanted) {
    const what = asked.mode === "share" ? "words" : "input sensitivity";
    const running = store.progress(asked);
    const trouble = wanted ? store.trouble(asked) : null;
    const again = () => {
      store.forgive();
      fillRows();
    };
    if (running) wordStatus.waiting(what, running.progress, store.stop);
    else if (trouble?.message) wordStatus.failed(what, trouble.message, again);
    else if (trouble) wordStatus.cancelled(what, again);
    else wordStatus.clear();
  }

  function colourWords() {
    const strongest = colour(rows.map(({ words }) => words), theme);
    writeLegend(strongest);
  }

  /** @param {number} strongest */
  function writeLegend(strongest) {
    if (!drawn || rows.length === 0 || focus.partial) return legend.replaceChildren();
    const asked = way();
    const coloured = rows.some(({ words }) => words.length > 0);
    if (!coloured) {
      const why = focus.detail?.unavailable ?? (!splits() ? "their shares were not computed."
        : store.progress(asked) ? "they are on their way." : traits.overview?.live ? "ask again above." : "this page has no model to ask; the notebook has.");
      return legend.replaceChildren(`Words are not coloured: ${why}`);
    }
    if (asked.mode === "sensitivity") {
      return legend.replaceChildren(h("b", { class: "nx-hot" }, "orange"), ": with these words the response to the component would change most · within each text the largest is 1");
    }
    const negative = rows.some(({ words }) => words.some(({ token }) => token.share < 0));
    legend.replaceChildren(
      h("b", { class: "nx-hot" }, "orange words raise the coefficient"),
      ...(negative ? [" · ", h("b", { class: "nx-cold" }, "blue, dotted words lower it")] : []),
      ` · strongest ${percent(strongest)} · click an example to pick it`,
    );
  }

  /** Says what one word is worth. @param {Row} row @param {number} index */
  function tell(row, index) {
    const found = row.words[index];
    readout.textContent = found ? `“${visibleText(found.token.text, 60)}” ${worth(found.token.share, traits.get("tokens"))}` : "";
  }

  // ---------------------------------------------------------------------------------------------------------- moving and picking

  /** @param {number} index */
  function moveTo(index) {
    active = Math.max(0, Math.min(rows.length - 1, index));
    word = -1;
    rows.forEach((row, i) => (row.element.tabIndex = i === active ? 0 : -1));
    rows[active]?.element.focus();
    writeActions();
  }

  /** @param {number} by */
  function moveWord(by) {
    const { words } = rows[active];
    if (words.length === 0) return;
    for (const { element } of words) element.classList.remove("nx-cursor");
    word = word < 0 ? (by > 0 ? 0 : words.length - 1) : Math.max(0, Math.min(words.length - 1, word + by));
    words[word].element.classList.add("nx-cursor");
    tell(rows[active], word);
  }

  list.addEventListener("keydown", (event) => {
    if (!rows[active]) return;
    /** @type {Record<string, number>} */
    const moves = { ArrowDown: active + 1, ArrowUp: active - 1, Home: 0, End: rows.length - 1 };
    if (event.key in moves) moveTo(moves[event.key]);
    else if (event.key === "ArrowRight" || event.key === "ArrowLeft") moveWord(event.key === "ArrowRight" ? 1 : -1);
    else if (event.key === "Enter" || event.key === " ") traits.toggle(rows[active].example.row);
    else return;
    event.preventDefault();
  });

  function writeActions() {
    const row = rows[active];
    actions.hidden = !row;
    if (!row) return;
    const { example } = row;
    const picked = traits.selection.includes(example.row);
    const alike = example.duplicates?.length ?? 0;
    which.textContent = `example ${example.row}`;
    pick.setAttribute("aria-pressed", String(picked));
    unfold.hidden = alike === 0;
    unfold.textContent = `${unfolded.has(example.row) ? "hide" : "show"} ${alike} alike`;
    unfold.setAttribute("aria-expanded", String(unfolded.has(example.row)));
    unfold.setAttribute("aria-label", `${unfold.textContent}: near-duplicates of example ${example.row}`);
    trace.setAttribute("aria-pressed", String(traits.get("example") === example.row));
  }

  function markPicked() {
    const picked = new Set(traits.selection);
    for (const { element, example } of rows) {
      element.setAttribute("aria-selected", String(picked.has(example.row)));
      element.classList.toggle("nx-traced", example.row === traits.get("example"));
    }
    writeActions();
  }

  function writeChanges() {
    const shown = drawn && band === TOP ? effect.shown : null;
    for (const { example, chip, change } of rows) {
      const after = shown && shown.source !== "original" ? shown.after.of(example.row) : undefined;
      const is = after && effect.said(after);
      change.textContent = is ? ` → ${visibleText(is.name, 80)} ${percent(is.probability)}` : "";
      chip.classList.toggle("nx-changed", is !== undefined && is.name !== example.prediction);
    }
  }

  focus.changed.on(() => {
    writeStatus();
    drawRows();
  });
  store.changed.on(fillRows);
  effect.changed.on(writeChanges);
  theme.changed.on(colourWords);
  examples.changed.on(() => {
    for (const row of rows) if (unfolded.has(row.example.row)) writeAlike(row);
  });
  traits.onChange(scope, ["labels", "stars", "pinned"], writeHeadline);
  traits.onChange(scope, ["selection", "example"], markPicked);
  traits.onChange(scope, ["tokens", "pieces"], fillRows);
  drawRows();

  return h("section", { class: "nx-middle", "aria-label": "component in focus" },
    title, sentence, status.element, bands.element, controls, wordStatus.element, list, actions, legend, pinnedExamples(context), about(context));
}

/** @param {string} name @param {[string, string][]} options @param {(value: string) => void} onChange */
function choice(name, options, onChange) {
  const element = h("select", { "aria-label": name, title: name }, ...options.map(([value, text]) => h("option", { value }, text)));
  element.addEventListener("change", () => onChange(element.value));
  return element;
}

/** Something in an option that the mouse can hit. @param {string} text @param {() => void} onClick */
function act(text, onClick) {
  const element = h("span", { class: "nx-act" }, text);
  element.addEventListener("click", (event) => {
    event.stopPropagation();
    onClick();
  });
  return element;
}
