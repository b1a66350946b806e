/** The entry of a saved comparison: reads the data in the page and shows it. */

import comparison from "./compare.js";
import { createModel } from "./host.js";
import { part, startPage } from "./page_frame.js";

part("npeff-note").textContent = "A saved picture: works offline, sends nothing.";
startPage(({ data, matrix, state, tops }) => {
  const bytes = Uint8Array.from(atob(matrix), (character) => character.charCodeAt(0));
  const model = createModel({ ...state, data, matrix: new DataView(bytes.buffer) }, ({ side, component }) => ({ answer: tops[side][component], buffers: [] }));
  return { model, theme: state.theme, widget: comparison };
});
