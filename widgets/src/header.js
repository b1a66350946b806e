/** Title, subtitle and the search box. */

/** @import { Context } from "./explorer.js" */
import { h } from "./dom.js";

/** @param {Context} context */
export function header({ traits, view }) {
  const overview = traits.overview;
  const search = h("input", {
    type: "search", "aria-label": "search", placeholder: "search names, words, examples", spellcheck: "false", autocomplete: "off",
  });
  search.addEventListener("input", () => view.search(search.value));
  search.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && search.value) view.search("");
    else if (event.key === "Enter" && view.components.length) traits.update({ component: view.components[0].component });
  });
  view.changed.on(() => {
    if (search.value !== view.query) search.value = view.query;
  });
  return h("header", { class: "nx-top" }, h("h2", {}, overview?.title ?? ""), h("span", { class: "nx-dim" }, overview?.subtitle ?? ""), h("span", { class: "nx-spring" }), search);
}
