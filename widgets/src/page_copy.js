/** A copy of the static page with other data in it. */

/**
 * @param {HTMLElement} root the page's html element as it was written; changed
 * @param {any} data
 * @returns {string} the page's text
 */
export function withData(root, data) {
  const script = root.querySelector("#npeff-data");
  // as Python writes it: no "<", so that no text of an example can end the script
  if (script) script.textContent = JSON.stringify(data).replaceAll("<", "\\u003c").replaceAll("\u2028", "\\u2028");
  return `<!doctype html>\n${root.outerHTML}\n`;
}
