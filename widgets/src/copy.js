/** Text for the clipboard, also where the page is not allowed to write there by itself (a notebook on plain http, an old browser). */

import { h } from "./dom.js";

/** @param {HTMLElement} within @param {string} text @returns {Promise<boolean>} whether it worked */
export async function copyText(within, text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = h("textarea", { "aria-hidden": "true", tabindex: -1, style: "position:absolute;left:-9999px" });
    field.value = text;
    const focus = /** @type {HTMLElement | null} */ (document.activeElement);
    within.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    focus?.focus({ preventScroll: true });
    return done;
  }
}
