/** The static page's entry: reads the data in the page, shows the explorer, and wires the theme switch. */

import explorer from "./explorer.js";
import { h } from "./dom.js";
import { createHost } from "./host.js";

const place = /** @type {HTMLElement} */ (document.getElementById("npeff-explorer"));
const themes = /** @type {HTMLSelectElement} */ (document.getElementById("npeff-theme"));
const note = /** @type {HTMLElement} */ (document.getElementById("npeff-note"));
const system = matchMedia("(prefers-color-scheme: dark)");

/** Stands on html, where both the page's own style and the widget look for it. */
function applyTheme() {
  const dark = themes.value === "dark" || (themes.value === "auto" && system.matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}

try {
  const data = JSON.parse(document.getElementById("npeff-data")?.textContent ?? "");
  const model = createHost(data);
  themes.value = data.theme;
  themes.addEventListener("change", () => {
    applyTheme();
    model.set("theme", themes.value);
  });
  system.addEventListener("change", applyTheme);
  applyTheme();
  place.replaceChildren();
  explorer.render({ model, el: place });
  model.on("change:labels", () => {
    note.textContent = "Your names live in this page only and go when it is closed; set them in the notebook to keep them.";
    note.classList.add("npeff-told");
  });
} catch (error) {
  // what stood in the page as a fallback stays; the reason goes above it
  applyTheme();
  place.prepend(h("p", { role: "alert" }, `The interactive view could not start: ${error instanceof Error ? error.message : error}`));
}
