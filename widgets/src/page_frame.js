/** The frame of a saved page: where the picture goes, the theme switch above it, and what is said when it cannot start. */

import { h } from "./dom.js";

/** @param {string} id */
export const part = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

/**
 * Reads the data in the page and shows the picture in the place of what stood there as a fallback; the theme stands on html, where both the page's own
 * style and the widget look for it.
 * @param {(data: any) => { model: any, theme: string | undefined, widget: { render: (place: { model: any, el: HTMLElement }) => any } }} open
 * @returns {any} the model, or null where it could not start
 */
export function startPage(open) {
  const place = part("npeff-explorer");
  const themes = /** @type {HTMLSelectElement} */ (part("npeff-theme"));
  const system = matchMedia("(prefers-color-scheme: dark)");

  function applyTheme() {
    const dark = themes.value === "dark" || (themes.value === "auto" && system.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
  }

  try {
    const { model, theme, widget } = open(JSON.parse(part("npeff-data").textContent ?? ""));
    themes.value = theme ?? "auto";
    themes.addEventListener("change", () => {
      applyTheme();
      model.set("theme", themes.value);
    });
    system.addEventListener("change", applyTheme);
    applyTheme();
    place.replaceChildren();
    widget.render({ model, el: place });
    return model;
  } catch (error) {
    // what stood in the page as a fallback stays; the reason goes above it
    applyTheme();
    place.prepend(h("p", { role: "alert" }, `The interactive view could not start: ${error instanceof Error ? error.message : error}`));
    return null;
  }
}
