/** Details of single examples, asked for once and kept. */

/** @import { ExampleDetail } from "./protocol.js" */
/** @import { Requests } from "./requests.js" */
import { Cancelled } from "./requests.js";
import { createSignal } from "./signal.js";

/** @typedef {ReturnType<typeof createExampleStore>} ExampleStore */

/** @param {Requests} requests */
export function createExampleStore(requests) {
  const changed = createSignal();
  /** @type {Map<number, ExampleDetail>} */
  const known = new Map();
  /** @type {Set<number>} */
  const asked = new Set();
  /** @type {Map<number, string>} */
  const failed = new Map();

  return {
    changed,
    /** @param {number} row */
    get: (row) => known.get(row) ?? null,
    /** @param {number} row @returns {string | null} */
    trouble: (row) => failed.get(row) ?? null,
    /** Asks for the rows that are neither known nor on their way nor failed. @param {number[]} rows */
    want(rows) {
      const missing = rows.filter((row) => !known.has(row) && !asked.has(row) && !failed.has(row));
      if (missing.length === 0) return;
      for (const row of missing) asked.add(row);
      requests.ask({ ask: "examples", rows: missing }).promise.then(
        (/** @type {ExampleDetail[]} */ details) => {
          for (const detail of details) known.set(detail.row, detail);
          for (const row of missing) {
            asked.delete(row);
            if (!known.has(row)) failed.set(row, "no answer for this example");
          }
          changed.emit();
        },
        (error) => {
          for (const row of missing) {
            asked.delete(row);
            if (!(error instanceof Cancelled)) failed.set(row, error.message);
          }
          changed.emit();
        },
      );
    },
    /** Forgets failures, so that the rows can be asked for again. @param {number[]} rows */
    forgive(rows) {
      for (const row of rows) failed.delete(row);
    },
  };
}
