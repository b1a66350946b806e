/** Renaming in place: Enter or leaving the field saves, Escape keeps the old name. */

import { h } from "./dom.js";

/**
 * @param {HTMLElement} place its content is replaced while editing
 * @param {{ value: string, name: string, save: (value: string) => void, finished: () => void }} options
 */
export function editLabel(place, { value, name, save, finished }) {
  const input = h("input", { class: "nx-edit", type: "text", "aria-label": name, placeholder: "empty: default name", maxlength: 120 });
  input.value = value;
  let open = true;
  /** @param {boolean} keep */
  const close = (keep) => {
    if (!open) return; // removing the focused input fires blur once more
    open = false;
    const text = input.value;
    input.remove();
    if (keep) save(text);
    finished();
  };
  input.addEventListener("keydown", (event) => {
    event.stopPropagation(); // arrows and Enter belong to the text, not to the list around it
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.preventDefault(); // else Enter would also press the button that gets the focus back
    close(event.key === "Enter");
  });
  input.addEventListener("blur", () => close(true));
  for (const type of ["click", "dblclick", "mousedown"]) input.addEventListener(type, (event) => event.stopPropagation());
  place.replaceChildren(input);
  input.focus({ preventScroll: true });
  input.select();
}
