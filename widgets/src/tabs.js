/** The tabs above the panels: one is shown at a time, and made when it is first shown. */

/** @import { PanelName } from "./protocol.js" */
/** @import { Context } from "./explorer.js" */
import { h } from "./dom.js";

/** @typedef {{ name: string, title: string, make: (context: Context) => HTMLElement }} Panel */

/**
 * @param {Context} context
 * @param {Record<PanelName, Panel>} known
 */
export function tabs(context, known) {
  const { traits, scope } = context;
  const names = traits.get("panels").filter((name) => name in known);
  const body = h("div", { class: "nx-panels" });
  const bar = h("div", { class: "nx-tabs", role: "tablist", "aria-label": "parts of the explorer", hidden: names.length < 2 });
  /** @type {Map<PanelName, HTMLElement>} */
  const made = new Map();
  const id = crypto.getRandomValues(new Uint32Array(1))[0].toString(36);
  const buttons = names.map((name) => {
    const tab = h("button", { type: "button", role: "tab", id: `nx-tab-${id}-${name}`, "aria-controls": `nx-panel-${id}-${name}`, title: known[name].title }, known[name].name);
    tab.addEventListener("click", () => traits.update({ panel: name }));
    bar.append(tab);
    return tab;
  });
  for (const name of names) {
    // a tab names the panel it controls, so there is one from the start, and it is filled when someone looks
    const place = h("div", { class: "nx-panel", id: `nx-panel-${id}-${name}`, hidden: true });
    if (names.length > 1) {
      place.setAttribute("role", "tabpanel");
      place.setAttribute("aria-labelledby", `nx-tab-${id}-${name}`);
    }
    body.append(place);
    made.set(name, place);
  }

  bar.addEventListener("keydown", (event) => {
    const at = names.indexOf(current());
    /** @type {Record<string, number>} */
    const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: names.length - 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const next = (moves[event.key] + names.length) % names.length;
    traits.update({ panel: names[next] });
    buttons[next].focus({ preventScroll: true });
  });

  /** @returns {PanelName} */
  function current() {
    const asked = traits.get("panel");
    return names.includes(asked) ? asked : names[0];
  }

  function show() {
    const now = current();
    names.forEach((name, i) => {
      buttons[i].setAttribute("aria-selected", String(name === now));
      buttons[i].tabIndex = name === now ? 0 : -1;
      const place = /** @type {HTMLElement} */ (made.get(name));
      place.hidden = name !== now;
      if (name === now && !place.firstChild) place.append(known[name].make(context));
    });
  }
  traits.onChange(scope, ["panel"], show);
  return { bar, body, show };
}
