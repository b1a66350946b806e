/**
 * The few helpers that make elements. Text from data goes through textContent or setAttribute only: there is no way in
 * here to hand over markup.
 */

/** @typedef {string | number | Node | null | undefined | false} Child */
/** @typedef {Record<string, string | number | boolean | null | undefined>} Attributes */

const SVG = "http://www.w3.org/2000/svg";

/**
 * @param {Element} element
 * @param {Attributes} attributes null, undefined and false leave an attribute out; true sets it empty
 */
function setAttributes(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : String(value));
  }
}

/** @param {Child[]} children @returns {(string | Node)[]} */
function present(children) {
  /** @type {(string | Node)[]} */
  const nodes = [];
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    nodes.push(typeof child === "number" ? String(child) : child);
  }
  return nodes;
}

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Attributes} [attributes]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  setAttributes(element, attributes);
  element.append(...present(children));
  return element;
}

/**
 * @template {keyof SVGElementTagNameMap} T
 * @param {T} tag
 * @param {Attributes} [attributes]
 * @param {...Child} children
 * @returns {SVGElementTagNameMap[T]}
 */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  setAttributes(element, attributes);
  element.append(...present(children));
  return element;
}

/**
 * A button that is a real button, so that it works by keyboard and does not submit a form around it.
 * @param {string} name what a screen reader says
 * @param {string} text what is seen
 * @param {() => void} onClick
 * @param {Attributes} [attributes]
 */
export function button(name, text, onClick, attributes = {}) {
  const element = h("button", { type: "button", "aria-label": name, title: name, ...attributes }, text);
  element.addEventListener("click", (event) => {
    event.stopPropagation();
    onClick();
  });
  return element;
}

/** The focused element, also inside a shadow root. @param {Element} within */
export function focused(within) {
  const root = /** @type {Document | ShadowRoot} */ (within.getRootNode());
  const element = "activeElement" in root ? root.activeElement : null;
  return element instanceof HTMLElement && within.contains(element) ? element : null;
}

/**
 * Scrolls a list so that one row can be seen, and nothing else: `scrollIntoView` would also move the notebook.
 * @param {HTMLElement} list
 * @param {HTMLElement} row
 */
export function scrollWithin(list, row) {
  const top = row.getBoundingClientRect().top - list.getBoundingClientRect().top + list.scrollTop;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + row.offsetHeight > list.scrollTop + list.clientHeight) {
    list.scrollTop = top + row.offsetHeight - list.clientHeight;
  }
}
