/** The entry of a saved comparison: reads the data in the page, shows it, and wires the theme switch. */

import comparison from "./compare.js";
import { h } from "./dom.js";
import { createModel } from "./host.js";

const place = /** @type {HTMLElement} */ (document.getElementById("npeff-explorer"));
const themes = /** @type {HTMLSelectElement} */ (document.getElementById("npeff-theme"));
const system = matchMedia("(prefers-color-scheme: dark)");
/** @type {HTMLElement} */ (document.getElementById("npeff-note")).textContent = "A saved picture: works offline, sends nothing.";

function applyTheme() {
  const dark = themes.value === "dark" || (themes.value === "auto" && system.matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}

try {
  const { data, matrix, state, tops } = JSON.parse(document.getElementById("npeff-data")?.textContent ?? "");
  const bytes = Uint8Array.from(atob(matrix), (character) => character.charCodeAt(0));
  const model = createModel({ ...state, data, matrix: new DataView(bytes.buffer) }, ({ side, component }) => ({ answer: tops[side][component], buffers: [] }));
  themes.value = state.theme;
  themes.addEventListener("change", () => {
    applyTheme();
    model.set("theme", themes.value);
  });
  system.addEventListener("change", applyTheme);
  applyTheme();
  place.replaceChildren();
  comparison.render({ model, el: place });
} catch (error) {
  // what stood in the page as a fallback stays; the reason goes above it
  applyTheme();
  place.prepend(h("p", { role: "alert" }, `The interactive view could not start: ${error instanceof Error ? error.message : error}`));
}
