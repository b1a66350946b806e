/** Making one example the one that is traced. */

/** @import { Traits } from "./traits.js" */

/** Is there a panel that shows traces here? @param {Traits} traits */
export const traces = (traits) => traits.get("panels").includes("trace");

/** The example is a trait, so that a trace elsewhere follows too; where the panel is here, it opens. @param {Traits} traits @param {number} row */
export function toTrace(traits, row) {
  traits.update({ example: row, ...(traces(traits) ? { panel: /** @type {const} */ ("trace") } : {}) });
}
