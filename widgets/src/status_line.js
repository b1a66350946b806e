/** Waiting, failed or cancelled: always said in place, with the one thing the person can do about it. */

/** @import { Progress } from "./requests.js" */
import { button, h } from "./dom.js";

/** After this time without an answer the line says why that may be. */
const PATIENCE_MS = 8000;

/** @typedef {ReturnType<typeof statusPlace>} StatusPlace */

/** A place for one such line, empty as long as all is well. */
export function statusPlace() {
  const element = h("div");
  /** @type {{ what: string, show: (progress: Progress | null) => void } | null} */
  let waiting = null;

  /** @param {...Node} nodes */
  const put = (...nodes) => {
    waiting = null;
    element.replaceChildren(...nodes);
  };

  return {
    element,
    clear: () => put(),
    /**
     * Progress comes several times a second and is written into the same line: a Cancel button that is replaced between
     * press and release never hears the click.
     * @param {string} what is being done, e.g. "component 14"
     * @param {Progress | null} progress
     * @param {() => void} onCancel
     */
    waiting(what, progress, onCancel) {
      if (waiting?.what !== what) {
        const line = waitingLine(what, onCancel);
        put(line.element);
        waiting = { what, show: line.show };
      }
      waiting.show(progress);
    },
    /**
     * @param {string} what could not be done
     * @param {string} message
     * @param {() => void} onRetry
     */
    failed: (what, message, onRetry) => put(failedLine(what, message, onRetry)),
    /**
     * @param {string} what was cancelled
     * @param {() => void} onRetry
     */
    cancelled: (what, onRetry) => put(h(
      "div", { class: "nx-status", role: "status" }, h("span", {}, `${what}: cancelled`), button(`retry ${what}`, "Ask again", onRetry),
    )),
  };
}

/** @param {string} what @param {() => void} onCancel */
function waitingLine(what, onCancel) {
  const bar = h("progress", { "aria-label": what });
  const words = h("span");
  const element = h("div", { class: "nx-status", role: "status" }, bar, words, button(`cancel ${what}`, "Cancel", onCancel));
  let heard = false;
  setTimeout(() => {
    if (element.isConnected && !heard) words.textContent = `${what} … no answer yet: the kernel may be busy with a cell, or not running (then run the cell again)`;
  }, PATIENCE_MS);
  return {
    element,
    /** @param {Progress | null} progress */
    show(progress) {
      if (!progress) {
        if (!heard) words.textContent = `${what} …`;
        return;
      }
      heard = true;
      if (progress.total > 0) {
        bar.max = progress.total;
        bar.value = progress.done;
      }
      words.textContent = [progress.note || what, progress.total > 0 ? `${progress.done} of ${progress.total}` : ""].filter(Boolean).join(" · ");
    },
  };
}

/**
 * @param {string} what could not be done
 * @param {string} message
 * @param {() => void} onRetry
 */
export function failedLine(what, message, onRetry) {
  return h(
    "div", { class: "nx-status nx-failed", role: "alert" },
    h("span", {}, `${what} did not work: ${message}`), button(`retry ${what}`, "Retry", onRetry),
  );
}

/** What is missing and why, where it would have been. @param {string} text */
export function absent(text) {
  return h("p", { class: "nx-absent" }, text);
}
