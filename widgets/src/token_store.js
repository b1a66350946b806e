/** Words coloured otherwise than they came with the detail: asked for when someone wants to see them, and kept. */

/** @import { Coloured, Token } from "./protocol.js" */
/** @import { Pending, Progress, Requests } from "./requests.js" */
import { Cancelled } from "./requests.js";
import { createSignal } from "./signal.js";

/** @typedef {ReturnType<typeof createTokenStore>} TokenStore */
/** @typedef {{ component: number, mode: "share" | "sensitivity", pieces: boolean }} Colouring */
/** @typedef {{ tokens: Token[], aside: { name: string, share: number }[] }} Spoken */

/** Ways of colouring that are kept, each with all the rows that were looked at. */
const KEPT = 24;

/** @param {Requests} requests */
export function createTokenStore(requests) {
  const changed = createSignal();
  /** @type {Map<string, Map<number, Spoken>>} */
  const known = new Map();
  /** @type {{ key: string, pending: Pending<Coloured>, progress: Progress | null } | null} */
  let running = null;
  /** @type {{ key: string, message: string | null } | null} message null: the person cancelled it */
  let trouble = null;

  /** @param {Colouring} way */
  const keyOf = ({ component, mode, pieces }) => `${component} ${mode} ${pieces}`;

  return {
    changed,
    /** @param {Colouring} way @param {number} row @returns {Spoken | null} */
    get: (way, row) => known.get(keyOf(way))?.get(row) ?? null,
    /** @param {Colouring} way */
    progress: (way) => (running?.key === keyOf(way) ? { progress: running.progress } : null),
    /** @param {Colouring} way */
    trouble: (way) => (trouble?.key === keyOf(way) ? trouble : null),
    /** Asks for the rows that are missing; what was asked before is no longer wanted. @param {Colouring} way @param {number[]} rows */
    want(way, rows) {
      const key = keyOf(way);
      const missing = rows.filter((row) => !known.get(key)?.has(row));
      if (running && running.key !== key) this.cancel();
      if (missing.length === 0 || running || trouble?.key === key) return;
      const pending = requests.ask({ ask: "tokens", ...way, rows: missing }, (progress) => {
        if (running?.pending !== pending) return;
        running.progress = progress;
        changed.emit();
      });
      const mine = { key, pending, progress: null };
      running = mine;
      trouble = null;
      pending.promise.then(
        (/** @type {Coloured} */ answer) => {
          const rows = known.get(key) ?? new Map();
          known.delete(key);
          known.set(key, rows);
          for (const { row, tokens, aside } of answer.rows) rows.set(row, { tokens, aside });
          while (known.size > KEPT) known.delete(/** @type {string} */ (known.keys().next().value));
          if (running === mine) running = null;
          // rows that did not come would be asked for again and again
          if (missing.some((row) => !rows.has(row))) trouble = { key, message: "some examples have no tokens" };
          changed.emit();
        },
        (error) => {
          if (running !== mine) return;
          running = null;
          trouble = { key, message: error instanceof Cancelled ? null : error.message };
          changed.emit();
        },
      );
    },
    /** The person, or what they look at now, does without. */
    cancel() {
      const was = running;
      running = null;
      was?.pending.cancel();
      was?.pending.promise.catch(() => {});
    },
    /** The person does without, and wants to be told how to ask again. */
    stop() {
      running?.pending.cancel();
    },
    forgive() {
      trouble = null;
    },
  };
}
