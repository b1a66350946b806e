/**
 * What has to be undone when the widget goes away: listeners on the model, observers, timers, requests.
 * Listeners on our own elements die with the elements and are not kept here.
 */

/** @typedef {ReturnType<typeof createScope>} Scope */

export function createScope() {
  /** @type {(() => void)[]} */
  const undo = [];
  const scope = {
    /** @param {() => void} action runs once, at the end */
    add(action) {
      undo.push(action);
    },
    /** A scope that ends with this one, or earlier. */
    child() {
      const inner = createScope();
      undo.push(inner.dispose);
      return inner;
    },
    dispose() {
      for (const action of undo.splice(0).reverse()) action();
    },
  };
  return scope;
}
