/** The tiles of the heatmap that are here, and the one that is on its way. */

/** @import { Heat } from "./protocol.js" */
/** @import { Pending, Requests } from "./requests.js" */
/** @import { Range, Tile } from "./heatgrid.js" */
import { FOCUS, sharpEnough, sharpTile, wholeTile } from "./heatgrid.js";
import { Cancelled } from "./requests.js";
import { createSignal } from "./signal.js";

/** Sharp tiles that are kept: some steps back and forth without a question. */
const KEPT = 4;

/** @typedef {ReturnType<typeof createTiles>} Tiles */
/** @typedef {{ order: string, focus: number, strip: string }} Choice */

/**
 * @param {Requests} requests
 * @param {number} total examples
 * @param {number} components
 */
export function createTiles(requests, total, components) {
  const changed = createSignal();
  /** @type {Choice} */
  let choice = { order: "", focus: -1, strip: "" };
  /** @type {Tile | null} */
  let whole = null;
  /** @type {Tile[]} the latest last */
  let sharp = [];
  /** @type {number[] | null} */
  let rows = null;
  /** Do the tiles still show another order? */
  let old = false;
  /** @type {{ pending: Pending<any>, from: number, to: number, columns: number } | null} */
  let running = null;
  let trouble = "";
  let cancelled = false;

  const all = () => (whole ? [whole, ...sharp] : []);

  /** @param {{ from: number, to: number, columns: number }} piece */
  function ask(piece) {
    running?.pending.cancel();
    [trouble, cancelled] = ["", false];
    const { from, to, columns } = piece;
    const asked = choice;
    const pending = requests.ask({ ask: "heat", ...asked, from, to, columns });
    running = { pending, from, to, columns };
    pending.promise.then((/** @type {Heat & { buffers: DataView[] }} */ answer) => {
      const tile = { from, to, columns, ...read(answer.buffers, columns, asked.strip !== ""), strip: asked.strip };
      if (old) [sharp, old] = [[], false];
      const first = wholeTile(total, components);
      if (from === first.from && to === first.to && columns === first.columns) whole = tile;
      else sharp = [...sharp.filter((other) => other.from !== from || other.to !== to), tile].slice(-KEPT);
      rows = answer.rows;
      running = null;
      changed.emit();
    }).catch((error) => {
      if (error instanceof Cancelled) return; // another question took its place, or nobody looks any more
      running = null;
      trouble = error.message;
      changed.emit();
    });
  }

  /** @param {DataView[] | undefined} buffers @param {number} columns @param {boolean} coded */
  function read(buffers, columns, coded) {
    const [bytes, codes] = (buffers ?? []).map(({ buffer, byteOffset, byteLength }) => new Uint8Array(buffer, byteOffset, byteLength));
    if (bytes?.length !== components * columns || (coded && codes?.length !== 2 * columns)) throw new Error("the answer has not the size that was asked for");
    return { bytes, codes: coded ? new Int16Array(codes.slice().buffer) : null }; // copied: its bytes may begin at an odd place
  }

  return {
    changed,
    /** The tiles to draw from. */
    get all() {
      return all();
    },
    get rows() {
      return rows;
    },
    get old() {
      return old;
    },
    get waiting() {
      return running !== null;
    },
    /** Why the last question had no answer, or "". */
    get trouble() {
      return trouble;
    },
    /** @returns {Choice} */
    get choice() {
      return choice;
    },
    /** Shows another order or strip; what is here stays until there is something better. @param {Choice} next */
    choose(next) {
      const focus = next.order === FOCUS ? next.focus : 0;
      if (choice.order === next.order && choice.focus === focus && choice.strip === next.strip) return;
      old ||= whole !== null && (choice.order !== next.order || choice.focus !== focus);
      choice = { ...next, focus };
      ask(wholeTile(total, components));
    },
    /** Asks for what makes a window sharp, unless it is here or on its way. @param {Range} range @param {number} pixels */
    want(range, pixels) {
      if (old || !whole || whole.strip !== choice.strip) {
        if (!running) ask(wholeTile(total, components));
        return;
      }
      /** @param {{ from: number, to: number, columns: number }} tile */
      const enough = (tile) => sharpEnough(tile, range, total, pixels, components);
      if (all().some((tile) => tile.strip === choice.strip && enough(tile))) return;
      if (running && enough(running)) return;
      ask(sharpTile(range, total, pixels, components));
    },
    get cancelled() {
      return cancelled;
    },
    /** The person does not want to wait. */
    cancel() {
      running?.pending.cancel();
      running = null;
      cancelled = true;
      changed.emit();
    },
  };
}
