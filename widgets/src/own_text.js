/** The person's own text: which components it uses, what the model says, which words count, and examples like it. */

/** @import { ExampleRow, TextAnswer, Token } from "./protocol.js" */
/** @import { Context } from "./explorer.js" */
/** @import { Pending } from "./requests.js" */
/** @import { Word } from "./example_row.js" */
import { button, focused, h } from "./dom.js";
import { chips, colour, worth } from "./example_row.js";
import { coefficient, percent } from "./numbers.js";
import { Cancelled } from "./requests.js";
import { statusPlace } from "./status_line.js";
import { traces } from "./to_trace.js";
import { MOST_OF_A_WORD, strongest, visibleText } from "./tokens.js";

/** Components and classes that get a bar of their own. */
const BARS = 8;
const CLASSES = 6;
/** Smaller coefficients would read 0.00. */
const SMALLEST = 0.005;
/** Nobody types more; a book does not belong on the wire. */
const LONGEST = 20000;

/** @param {Context} context */
export function ownText({ traits, theme, requests, scope }) {
  const area = h("textarea", { rows: 2, maxlength: LONGEST, "aria-label": "your text", placeholder: "a text of your own", spellcheck: "false" });
  const look = button("look at this text", "Look", commit);
  const trace = button("Trace it through the network", "Trace it", () => traits.update({ example: -1, panel: "trace" }));
  const hint = h("p", { class: "nx-legend" }, "Enter looks, Shift+Enter breaks the line · for models that read pairs of texts: first ||| second");
  const status = statusPlace();
  const result = h("div", { class: "nx-ownresult", hidden: true });
  const element = h("section", { class: "nx-own", "aria-label": "my text" },
    h("div", { class: "nx-head" }, h("h3", {}, "A text of your own")), h("div", { class: "nx-ownform" }, area, look), hint, status.element, result);

  /** @type {Pending<TextAnswer> | null} */
  let running = null;
  /** @type {TextAnswer | null} */
  let answer = null;
  /** Are its words still on their way? */
  let waiting = false;
  /** @type {Word[][]} */
  let words = [];

  function commit() {
    if (area.value !== traits.get("text")) traits.update({ text: area.value });
    else if (area.value.trim() && !running && answer?.text !== area.value) ask();
  }

  function ask() {
    const text = traits.get("text");
    running?.cancel();
    running = null;
    if (!text.trim()) {
      answer = null;
      status.clear();
      return draw();
    }
    if (!traits.overview?.live) {
      answer = null;
      draw();
      result.hidden = false;
      result.replaceChildren(h("p", { class: "nx-absent" }, "A text of your own needs the model, and this page has none: in the notebook, attach it with npeff.attach(model, tokenizer)."));
      return;
    }
    const what = "your text";
    const pending = requests.ask({ ask: "text", text }, (progress, partial) => {
      if (running !== pending) return;
      status.waiting(what, progress, pending.cancel);
      if (!partial) return;
      answer = partial;
      waiting = true;
      draw();
    });
    running = pending;
    status.waiting(what, null, pending.cancel);
    result.classList.toggle("nx-stale", answer !== null);
    pending.promise.then(
      (/** @type {TextAnswer} */ found) => {
        if (running !== pending) return;
        running = null;
        answer = found;
        waiting = false;
        status.clear();
        draw();
      },
      (error) => {
        if (running !== pending) return;
        running = null;
        waiting = false;
        if (answer?.text !== text) answer = null;
        if (error instanceof Cancelled) status.cancelled(what, ask);
        else status.failed(what, error.message, ask);
        draw();
      },
    );
  }

  function draw() {
    result.classList.remove("nx-stale");
    result.hidden = !answer;
    words = [];
    if (!answer) return result.replaceChildren();
    const held = focused(result)?.getAttribute("aria-label");
    const { coefficients, unexplained, neighbours } = answer;
    result.replaceChildren(
      h("div", { class: "nx-owncolumn" }, h("h3", {}, "Components"), componentBars(coefficients, unexplained),
        h("h3", {}, "Prediction"), h("p", { class: "nx-meta" }, ...chips({ ...answer, gold: null }).nodes.filter((node) => node !== null), traces(traits) ? trace : ""), classBars(answer.probabilities)),
      h("div", { class: "nx-owncolumn" }, h("h3", {}, "Words"), ...spoken(answer), h("h3", {}, "Examples like it"),
        h("p", { class: "nx-legend" }, "by the cosine of their coefficients · click to pick"), likeIt(neighbours)),
    );
    colour(words, theme);
    const same = [...result.querySelectorAll("button")].find((one) => one.getAttribute("aria-label") === held);
    if (held) same?.focus({ preventScroll: true });
  }

  /** @param {TextAnswer["coefficients"]} coefficients @param {number} unexplained */
  function componentBars(coefficients, unexplained) {
    if (coefficients.length === 0) return h("p", { class: "nx-absent" }, "None of the components explains anything of this text's Fisher.");
    const largest = coefficients[0].value;
    const shown = coefficients.filter(({ value }, i) => i < BARS && value >= SMALLEST);
    const rest = coefficients.length - shown.length;
    return h("ul", { class: "nx-ownbars" },
      ...shown.map(({ component, value }) => {
        const name = visibleText(traits.label(component), 80);
        const go = button(`component ${component} · ${name}, coefficient ${coefficient(value)}`, `${component} · ${name}`, () => traits.update({ component }),
          { class: `nx-link ${component === traits.component ? "nx-here" : ""}` });
        return h("li", {}, go, measure(value / largest, "nx-cold"), h("span", { class: "nx-figure" }, coefficient(value)));
      }),
      rest ? h("li", { class: "nx-dim" }, `and ${rest} smaller`) : null,
      h("li", { class: "nx-dim", title: "share of the text's unit-norm Fisher that no component explains" }, h("span", {}, "unexplained"), measure(unexplained, ""), h("span", { class: "nx-figure" }, percent(unexplained))));
  }

  /** @param {number[]} probabilities */
  function classBars(probabilities) {
    const names = traits.overview?.classes ?? [];
    const order = probabilities.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a]).slice(0, CLASSES);
    return h("ul", { class: "nx-ownbars" }, ...order.map((i) => h("li", {}, h("span", {}, visibleText(names[i] ?? String(i), 60)), measure(probabilities[i], "nx-cold"),
      h("span", { class: "nx-figure" }, percent(probabilities[i])))));
  }

  /** Its words, coloured for each of the strongest components. @param {TextAnswer} answer */
  function spoken({ tokens, coefficients }) {
    const shown = coefficients.filter(({ component }) => tokens[String(component)]);
    const parts = shown.map(({ component }) => {
      const { tokens: of, aside } = tokens[String(component)];
      const line = h("div", { class: "nx-text" });
      words.push(coloured(line, of));
      return h("div", { class: "nx-ownwords" }, h("p", { class: "nx-meta" }, h("b", {}, `${component} · ${visibleText(traits.label(component), 80)}`),
        ...aside.map(({ name, share }) => h("span", {}, `${visibleText(name, 40)} ${percent(share)}`))), line);
    });
    return waiting ? [...parts, h("p", { class: "nx-legend" }, "… the words of the next component are on their way")] : parts;
  }

  /** @param {ExampleRow[]} rows */
  function likeIt(rows) {
    if (rows.length === 0) return h("p", { class: "nx-absent" }, "No example shares a component with it.");
    const picked = new Set(traits.selection);
    return h("ul", { class: "nx-pinnedlist" }, ...rows.map((row) => h("li", {}, h("span", { class: "nx-figure nx-dim" }, row.coefficient.toFixed(3)),
      button(`pick example ${row.row}: ${visibleText(row.text, 400)}`, visibleText(row.text, 400), () => traits.toggle(row.row), { class: "nx-link", "aria-pressed": String(picked.has(row.row)) }))));
  }

  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    commit();
  });
  area.addEventListener("change", commit);
  traits.onChange(scope, ["text"], () => {
    if (focused(element) !== area || !area.value.trim()) area.value = traits.get("text");
    ask();
  });
  traits.onChange(scope, ["labels", "component", "selection"], draw);
  theme.changed.on(() => colour(words, theme));
  area.value = traits.get("text");
  if (area.value.trim()) ask();
  return element;
}

/** A bar, 0 to 1. @param {number} share @param {string} hue */
function measure(share, hue) {
  const filled = h("i");
  filled.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  return h("span", { class: `nx-bar ${hue}`, "aria-hidden": "true" }, filled);
}

/** @param {HTMLElement} place @param {Token[]} tokens @returns {Word[]} */
function coloured(place, tokens) {
  const best = strongest(tokens);
  return tokens.map((token, i) => {
    if (token.space && i > 0) place.append(" ");
    const element = h("span", { class: `nx-token ${token.share < 0 ? "nx-against" : ""}`, title: worth(token.share, "share") }, visibleText(token.text, MOST_OF_A_WORD));
    place.append(element);
    if (i === best) place.append(h("small", { class: "nx-value" }, percent(token.share)));
    return { element, token };
  });
}
