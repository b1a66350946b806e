/** The smallest observer: "something about this has changed, look again". */

/** @typedef {ReturnType<typeof createSignal>} Signal */

export function createSignal() {
  /** @type {Set<() => void>} */
  const listeners = new Set();
  return {
    /** @param {() => void} listener */
    on(listener) {
      listeners.add(listener);
    },
    emit() {
      for (const listener of [...listeners]) listener();
    },
  };
}
