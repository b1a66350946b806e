/** The static page's entry: reads the data in the page, shows the explorer, and wires the theme switch and the saving of a copy. */

import explorer from "./explorer.js";
import { h } from "./dom.js";
import { KEPT, createHost } from "./host.js";
import { withData } from "./page_copy.js";
import { download } from "./download.js";

const place = /** @type {HTMLElement} */ (document.getElementById("npeff-explorer"));
const themes = /** @type {HTMLSelectElement} */ (document.getElementById("npeff-theme"));
const note = /** @type {HTMLElement} */ (document.getElementById("npeff-note"));
const save = /** @type {HTMLButtonElement} */ (document.getElementById("npeff-save"));
const system = matchMedia("(prefers-color-scheme: dark)");
/** The page as it was written: what the explorer makes of it is not part of a copy. */
const source = document.documentElement.cloneNode(true);

/** Stands on html, where both the page's own style and the widget look for it. */
function applyTheme() {
  const dark = themes.value === "dark" || (themes.value === "auto" && system.matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}

try {
  const data = JSON.parse(document.getElementById("npeff-data")?.textContent ?? "");
  const model = createHost(data);
  themes.value = data.state.theme ?? "auto";
  themes.addEventListener("change", () => {
    applyTheme();
    model.set("theme", themes.value);
  });
  system.addEventListener("change", applyTheme);
  applyTheme();
  place.replaceChildren();
  explorer.render({ model, el: place });
  for (const name of KEPT) {
    model.on(`change:${name}`, () => {
      note.textContent = "Names, notes and stars that you change live in this page until it is closed: save a copy to keep them.";
      note.classList.add("npeff-told");
      save.hidden = false;
    });
  }
  save.addEventListener("click", () => {
    const kept = Object.fromEntries(KEPT.map((name) => [name, model.get(name)]));
    download(`${document.title}.html`, withData(/** @type {HTMLElement} */ (source.cloneNode(true)), { ...data, ...kept }), "text/html");
  });
} catch (error) {
  // what stood in the page as a fallback stays; the reason goes above it
  applyTheme();
  place.prepend(h("p", { role: "alert" }, `The interactive view could not start: ${error instanceof Error ? error.message : error}`));
}
