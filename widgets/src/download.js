/** Hands a text to the browser as a file. */

/**
 * @param {string} name characters that no file name may have are taken out
 * @param {string} text
 * @param {string} type
 */
export function download(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = document.createElement("a");
  link.href = address;
  link.download = name.replace(/[\\/:*?"<>|\u0000-\u001f]+/g, " ").trim() || "page.html";
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 0);
}
