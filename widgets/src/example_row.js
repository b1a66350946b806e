/** One example in a list: how much of the component it has, what is known of it, and its words with their colours. */

/** @import { ExampleRow, Token } from "./protocol.js" */
/** @import { Theme } from "./theme.js" */
/** @import { Spoken } from "./token_store.js" */
import { css, over, readable } from "./colour.js";
import { h } from "./dom.js";
import { coefficient, percent } from "./numbers.js";
import { MOST_OF_A_WORD, largestShare, part, strongest, tokenOpacity, visibleText } from "./tokens.js";

/** @typedef {"share" | "sensitivity"} Mode */
/** @typedef {{ element: HTMLElement, token: Token }} Word */
/** @typedef {ReturnType<typeof exampleRow>} Row */

/** What one word's number means. @param {number} share @param {Mode} mode @param {number} [digits] */
export function worth(share, mode, digits = 1) {
  return mode === "share" ? `${percent(share, digits)} of the coefficient` : `${share.toFixed(2)} of the most sensitive token`;
}

/**
 * Gold label and prediction, as chips.
 * @param {{ gold: string | null, prediction: string, probability: number }} example
 * @param {HTMLElement} [change] what an edit makes of the prediction stands in the same chip
 */
export function chips({ gold, prediction, probability }, change) {
  const right = gold === null || !prediction ? null : gold === prediction;
  const chip = h(
    "span", { class: `nx-chip ${right === null ? "" : right ? "nx-good" : "nx-bad"}` },
    `${right === null ? "" : right ? "✓ " : "✗ "}predicts ${visibleText(prediction, 80)} ${percent(probability)}`, change,
  );
  return {
    chip,
    nodes: [gold === null ? null : h("span", { class: "nx-chip" }, `gold ${visibleText(gold, 80)}`), prediction ? chip : null],
  };
}

/**
 * @param {ExampleRow} example
 * @param {number} largest coefficient of the list
 */
export function exampleRow(example, largest) {
  const bar = h("span", { class: "nx-bar", "aria-hidden": "true" }, h("i"));
  const filled = /** @type {HTMLElement} */ (bar.firstElementChild);
  filled.style.width = `${Math.min(100, Math.max(0, (100 * example.coefficient) / largest))}%`;
  const change = h("span");
  const { chip, nodes } = chips(example, change);
  const aside = h("span", { class: "nx-aside" });
  const acts = h("span", { class: "nx-acts" });
  const meta = h("div", { class: "nx-meta" }, bar, h("span", { class: "nx-figure" }, h("span", { class: "nx-hush" }, "coefficient "), coefficient(example.coefficient)), ...nodes.filter((node) => node !== null), aside, acts);
  const text = h("div", { class: "nx-text" }, visibleText(example.text));
  // what is read out begins with the text; the style sheet shows it below
  const element = h("li", { class: "nx-example" }, text, " ", meta);
  /** @type {Word[]} */
  let words = [];

  return {
    example,
    element,
    chip,
    change,
    acts,
    text,
    get words() {
      return words;
    },
    /**
     * @param {Spoken | null} spoken null: the plain text
     * @param {Mode} mode
     * @param {boolean} whole the whole text, however long
     */
    speak(spoken, mode, whole) {
      words = [];
      aside.replaceChildren();
      if (spoken) {
        const { tokens } = spoken;
        const best = strongest(tokens);
        const [from, to] = whole ? [0, tokens.length] : part(tokens.length, best);
        text.replaceChildren(from > 0 ? "…" : "");
        tokens.slice(from, to).forEach((token, i) => {
          if (token.space && (i > 0 || from > 0)) text.append(" ");
          const value = from + i === best ? h("small", { class: "nx-value" }, mode === "share" ? percent(token.share) : "") : null;
          const word = h("span", { class: `nx-token ${token.share < 0 ? "nx-against" : ""}`, title: worth(token.share, mode) }, visibleText(token.text, MOST_OF_A_WORD));
          words.push({ element: word, token });
          text.append(word, ...(value?.textContent ? [value] : []));
        });
        if (to < tokens.length) text.append(" …");
        aside.append(...spoken.aside.map(({ name, share }) => h("span", { title: `${visibleText(name, 80)}: ${worth(share, mode)}` },
          `${visibleText(name, 40)} ${mode === "share" ? percent(share) : share.toFixed(2)}`)));
      } else text.replaceChildren(visibleText(example.text));
    },
  };
}

/**
 * @param {Word[][]} lists one scale for all of them
 * @param {Theme} theme
 */
export function colour(lists, theme) {
  const { hot, cold, paper, ink } = theme.colours;
  const largest = largestShare(lists.map((words) => ({ tokens: words.map(({ token }) => token) })));
  for (const { element, token } of lists.flat()) {
    const ground = over(token.share < 0 ? cold : hot, paper, tokenOpacity(token.share, largest));
    element.style.background = css(ground);
    element.style.color = css(readable(ground, ink));
  }
  return largest;
}
