/** Title, subtitle, the search box and the tabs. */

/** @import { Context } from "./explorer.js" */
/** @import { PageAnswer } from "./protocol.js" */
import { button, h } from "./dom.js";
import { download } from "./download.js";
import { Cancelled } from "./requests.js";
import { statusPlace } from "./status_line.js";

/** Parts that follow the search; beside others there is nothing to search for. */
const SEARCHED = ["components", "table", "heatmap", "map"];

/** @param {Context} context @param {HTMLElement} bar of tabs */
export function header({ traits, view, requests }, bar) {
  const overview = traits.overview;
  const search = h("input", {
    type: "search", "aria-label": "search", placeholder: "search names, words, examples", spellcheck: "false", autocomplete: "off", maxlength: 200,
    hidden: !traits.get("panels").some((name) => SEARCHED.includes(name)),
  });
  search.addEventListener("input", () => view.search(search.value));
  search.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && search.value) view.search("");
    else if (event.key === "Enter" && view.best !== null) traits.update({ component: view.best });
  });
  const follow = () => {
    if (search.value !== view.query) search.value = view.query;
  };
  view.changed.on(follow);
  follow();
  const trouble = statusPlace();
  /** The kernel writes the page, with what the person sees now; the browser saves it where it saves everything. */
  function save() {
    const pending = requests.ask({ ask: "page", panels: traits.get("panels"), state: traits.state() }, (progress) => trouble.waiting("the page", progress, pending.cancel));
    trouble.waiting("the page", null, pending.cancel);
    pending.promise.then(
      (/** @type {PageAnswer} */ { name, text }) => {
        trouble.clear();
        download(name, text, "text/html");
      },
      (error) => {
        if (error instanceof Cancelled) trouble.clear();
        else trouble.failed("saving the page", error.message, save);
      },
    );
  }
  const page = overview?.saved ? null : button("save all this as a page that opens anywhere", "Save page", save);

  return h("header", { class: "nx-top" }, h("h2", {}, overview?.title ?? ""), h("span", { class: "nx-dim" }, overview?.subtitle ?? ""), h("span", { class: "nx-spring" }), search, page, bar, trouble.element);
}
