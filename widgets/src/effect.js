/**
 * What turning the component does at the strength that is shown. While the slider moves it is interpolated on the sweep;
 * once it is let go, a live model is really run, and the state says which of the two is on the screen.
 */

/** @import { StrengthResult, Sweep } from "./protocol.js" */
/** @import { Requests, Pending, Progress } from "./requests.js" */
/** @import { Response } from "./sweep.js" */
/** @import { Scope } from "./scope.js" */
/** @import { Traits } from "./traits.js" */
/** @import { Focus } from "./focus.js" */
import { Cancelled } from "./requests.js";
import { createSignal } from "./signal.js";
import { responseAt } from "./sweep.js";

/** @typedef {"original" | "interpolated" | "computed" | "running" | "failed" | "cancelled"} Source */
/** @typedef {ReturnType<typeof createEffect>} Effect */

/**
 * @param {Traits} traits
 * @param {Focus} focus
 * @param {Requests} requests
 * @param {Scope} scope
 */
export function createEffect(traits, focus, requests, scope) {
  const changed = createSignal();
  /** @type {Map<string, StrengthResult>} */
  const results = new Map();
  /** @type {number | null} the strength under the thumb while it is dragged */
  let preview = null;
  /** @type {{ key: string, pending: Pending<StrengthResult> } | null} */
  let running = null;
  /** @type {Progress | null} */
  let progress = null;
  /** @type {{ key: string, source: Source, message: string } | null} */
  let trouble = null;

  const key = () => `${traits.component} ${traits.strength}`;

  function run() {
    const asked = key();
    if (running && running.key !== asked) {
      running.pending.cancel();
      running = null;
    }
    const needed = traits.overview?.live && traits.strength !== 0 && focus.detail?.sweep;
    if (needed && !running && !results.has(asked) && trouble?.key !== asked) {
      progress = null;
      const pending = requests.ask({ ask: "strength", component: traits.component, strength: traits.strength }, (news) => {
        progress = news;
        changed.emit();
      });
      const mine = { key: asked, pending };
      running = mine;
      pending.promise.then(
        (result) => {
          results.set(asked, result);
          if (running === mine) running = null;
          changed.emit();
        },
        (error) => {
          if (running !== mine) return; // overtaken by another strength or component
          running = null;
          trouble = { key: asked, source: error instanceof Cancelled ? "cancelled" : "failed", message: error.message };
          changed.emit();
        },
      );
    }
    changed.emit();
  }

  focus.changed.on(run);
  traits.onChange(scope, ["strength"], () => {
    preview = null;
    trouble = null;
    run();
  });
  traits.onChange(scope, ["component"], () => {
    preview = null;
    trouble = null;
  });

  return {
    changed,
    /** The strength that is shown: the thumb's while it moves, else the committed one. */
    get strength() {
      return preview ?? traits.strength;
    },
    /** @returns {Sweep | null} */
    get sweep() {
      return focus.detail?.sweep ?? null;
    },
    /** @returns {Progress | null} */
    get progress() {
      return progress;
    },
    get message() {
      return trouble?.message ?? "";
    },
    /** @returns {{ before: Response, after: Response, source: Source } | null} null without a sweep */
    get shown() {
      const sweep = this.sweep;
      if (!sweep) return null;
      const before = responseAt(sweep, 0);
      const after = responseAt(sweep, this.strength);
      if (this.strength === 0) return { before, after: before, source: "original" };
      if (preview !== null) return { before, after, source: after.computed ? "computed" : "interpolated" };
      const result = results.get(key());
      if (result) return { before, after: { ...result, kl_random: after.kl_random, computed: true }, source: "computed" };
      if (running) return { before, after, source: "running" };
      if (trouble) return { before, after, source: trouble.source };
      return { before, after, source: after.computed ? "computed" : "interpolated" };
    },
    /** @param {number} strength while dragging */
    drag(strength) {
      preview = strength;
      changed.emit();
    },
    /** @param {number} strength on release */
    commit(strength) {
      preview = null;
      if (strength === traits.strength) return changed.emit();
      traits.update({ strength });
    },
    retry() {
      trouble = null;
      run();
    },
    cancel() {
      running?.pending.cancel();
    },
  };
}
