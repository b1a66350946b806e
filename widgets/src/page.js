/** The entry of a saved explorer: reads the data in the page, shows it, and saves a copy with what the person changed. */

import { download } from "./download.js";
import explorer from "./explorer.js";
import { KEPT, createHost } from "./host.js";
import { withData } from "./page_copy.js";
import { part, startPage } from "./page_frame.js";

/** The page as it was written: what the explorer makes of it is not part of a copy. */
const source = document.documentElement.cloneNode(true);
/** @type {any} */
let written = null;

const model = startPage((data) => {
  written = data;
  return { model: createHost(data), theme: data.state.theme, widget: explorer };
});

if (model) {
  const [note, save] = [part("npeff-note"), part("npeff-save")];
  for (const name of KEPT) {
    model.on(`change:${name}`, () => {
      note.textContent = "Names, notes and stars that you change live in this page until it is closed: save a copy to keep them.";
      note.classList.add("npeff-told");
      save.hidden = false;
    });
  }
  save.addEventListener("click", () => {
    const kept = Object.fromEntries(KEPT.map((name) => [name, model.get(name)]));
    download(`${document.title}.html`, withData(/** @type {HTMLElement} */ (source.cloneNode(true)), { ...written, ...kept }), "text/html");
  });
}
