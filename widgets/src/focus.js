/** The component in focus and its detail, which Python may need several seconds for. */

/** @import { ComponentDetail } from "./protocol.js" */
/** @import { Requests, Pending, Progress } from "./requests.js" */
/** @import { Scope } from "./scope.js" */
/** @import { Traits } from "./traits.js" */
import { Cancelled } from "./requests.js";
import { createSignal } from "./signal.js";

/**
 * @typedef {{ status: "loading", progress: Progress | null } | { status: "ready" } | { status: "failed", message: string }
 *   | { status: "cancelled" }} Loading
 */
/** @typedef {ReturnType<typeof createFocus>} Focus */

/**
 * @param {Traits} traits
 * @param {Requests} requests
 * @param {Scope} scope
 */
export function createFocus(traits, requests, scope) {
  const changed = createSignal();
  /** @type {Map<number, ComponentDetail>} */
  const known = new Map();
  /** @type {ComponentDetail | null} what came with the progress of the request that runs */
  let partial = null;
  /** @type {Loading} */
  let state = { status: "ready" };
  /** @type {{ component: number, pending: Pending<ComponentDetail> } | null} */
  let running = null;

  /** @param {Loading} next */
  const become = (next) => {
    state = next;
    changed.emit();
  };

  function load() {
    const component = traits.component;
    if (running?.component === component) return;
    partial = null;
    running?.pending.cancel(); // browsing on must not pile up work in the kernel
    running = null;
    if (known.has(component)) return become({ status: "ready" });
    if (!traits.summary(component)) {
      const numbers = (traits.overview?.components ?? []).map((summary) => summary.component);
      const message = `component ${component} does not exist: this decomposition has ${numbers.length} `
        + `(${Math.min(...numbers)} to ${Math.max(...numbers)}).`;
      return become({ status: "failed", message });
    }
    const pending = requests.ask({ ask: "component", component }, (progress, known) => {
      if (running?.pending !== pending) return;
      partial = known ?? partial;
      become({ status: "loading", progress });
    });
    const mine = { component, pending };
    running = mine;
    pending.promise.then(
      (detail) => {
        known.set(component, detail);
        if (running !== mine) return;
        running = null;
        become({ status: "ready" });
      },
      (error) => {
        if (running !== mine) return;
        running = null;
        become(error instanceof Cancelled ? { status: "cancelled" } : { status: "failed", message: error.message });
      },
    );
    become({ status: "loading", progress: null });
  }

  traits.onChange(scope, ["component"], load);

  return {
    changed,
    load,
    get state() {
      return state;
    },
    /** @returns {ComponentDetail | null} of the component in focus, once it is known, or what is known so far */
    get detail() {
      return known.get(traits.component) ?? (partial?.component === traits.component ? partial : null);
    },
    /** Is `detail` only what is known so far? Then what it lacks is on its way, or was cancelled. */
    get partial() {
      return !known.has(traits.component);
    },
    cancel() {
      running?.pending.cancel();
    },
  };
}
