/**
 * Light or dark. CSS decides by the ancestors and by `data-theme` on the root; canvas and token colours, which need numbers,
 * are read back from the CSS variables.
 */

/** @import { Rgb } from "./colour.js" */
/** @import { Scope } from "./scope.js" */
/** @import { Traits } from "./traits.js" */
import { parseColour } from "./colour.js";
import { createSignal } from "./signal.js";

/** @typedef {ReturnType<typeof createTheme>} Theme */

/** @type {Record<"paper" | "ink" | "dim" | "line" | "hot" | "cold", Rgb>} the light theme, until the style sheet can be read */
const LIGHT = {
  paper: [255, 255, 255], ink: [28, 35, 48], dim: [91, 100, 118], line: [227, 231, 238], hot: [214, 96, 30], cold: [36, 104, 190],
};

/**
 * @param {HTMLElement} root
 * @param {Traits} traits
 * @param {Scope} scope
 */
export function createTheme(root, traits, scope) {
  const changed = createSignal();
  let colours = LIGHT;

  function refresh() {
    root.dataset.theme = traits.theme;
    const style = getComputedStyle(root);
    /** @param {keyof typeof LIGHT} name */
    const read = (name) => parseColour(style.getPropertyValue(`--nx-${name}`)) ?? LIGHT[name];
    const next = { paper: read("paper"), ink: read("ink"), dim: read("dim"), line: read("line"), hot: read("hot"), cold: read("cold") };
    if (JSON.stringify(next) === JSON.stringify(colours)) return;
    colours = next;
    changed.emit();
  }

  traits.onChange(scope, ["theme"], refresh);
  // notebooks switch their theme by an attribute on html or body; nothing is dispatched
  const observer = new MutationObserver(refresh);
  for (const element of [document.documentElement, document.body]) {
    observer.observe(element, { attributes: true, attributeFilter: ["class", "data-theme", "data-jp-theme-light", "data-vscode-theme-kind"] });
  }
  scope.add(() => observer.disconnect());

  return {
    changed,
    refresh,
    get colours() {
      return colours;
    },
  };
}
