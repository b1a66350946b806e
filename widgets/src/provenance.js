/** Where the numbers on the screen come from, in words: previewed, interpolated, or really run; shared by "Turn it" and the lab. */

/** @import { Context } from "./explorer.js" */
/** @import { Effect } from "./effect.js" */
import { h } from "./dom.js";
import { nats, percent, ratio } from "./numbers.js";
import { written } from "./slide.js";
import { statusPlace } from "./status_line.js";

/** @param {Effect} effect @param {boolean} live @returns {[string, string]} what is shown, and what that means */
export function sourceWords(effect, live) {
  const { shown, trusted, strengths, missing, range } = effect;
  const [[focus], ...more] = strengths;
  const added = more.filter(([, strength]) => strength !== 0).map(([component]) => component);
  switch (shown?.source) {
    case "original": return ["original model", "move a slider to turn a component down (−) or up (+)"];
    case "computed": return ["computed", `the model was really run at ${added.length ? "these strengths" : "this strength"}`];
    case "interpolated":
      return ["interpolated", `between strengths at which the model was run; ${live ? "let go to run it here" : "in the notebook it can be run here"}`];
    case "preview": {
      const next = live ? "; let go to run the model" : "; in the notebook the model can be run";
      if (added.length) return ["first-order preview", `responses to component${added.length > 1 ? "s" : ""} ${added.join(", ")}${effect.strength ? `, added to component ${focus}` : ""}${next}`];
      if (!trusted) return ["first-order preview", `softmax(z + s·dz); how far it holds is not known yet${next}`];
      const span = `${written(trusted[0], range)} to ${written(trusted[1], range)}`;
      const inside = effect.strength >= trusted[0] && effect.strength <= trusted[1];
      return ["first-order preview", `${inside ? `off by at most a tenth of the KL from ${span}` : `beyond ${span} it is off by more than a tenth of the KL`}${next}`];
    }
    case "unknown": {
      /** @param {string} why */
      const of = (why) => missing.filter((one) => one.why === why).map(({ component }) => component).join(", ");
      const parts = [...new Set(missing.map(({ why }) => why))].map((why) => (why === "coming" ? `the response to component ${of(why)} is on its way`
        : why === "no model" ? `this page has no model, and how these examples respond to component ${of(why)} was not saved in it: turn it in the notebook`
          : `the response to component ${of(why)} did not come: ${why}`));
      return ["not known", parts.join("; ")];
    }
    default: return ["", ""];
  }
}

/** The trusted range, in words. @param {Effect} effect */
export function trustWords({ trusted, range }) {
  return trusted ? `grey band: preview within a tenth of the KL, ${written(trusted[0], range)} to ${written(trusted[1], range)}` : "";
}

/**
 * The figures under a slider, the line that says what they are, and what is being done about it.
 * @param {Context} context
 */
export function provenance({ traits, effect }) {
  const figures = h("p", { class: "nx-figures" });
  const source = h("p", { class: "nx-source" });
  const status = statusPlace();
  return {
    elements: [figures, source, status.element],
    update() {
      const { shown, work, range, strengths, judge, sweep } = effect;
      figures.hidden = source.hidden = !shown;
      if (!shown) return status.clear();
      const { kl_top, kl_baseline, flips_top, flips_baseline } = shown.after;
      const known = shown.source !== "unknown";
      figures.replaceChildren(
        "KL top ", h("b", { class: "nx-hot" }, known ? nats(kl_top) : "–"), " · others ", h("b", { class: "nx-cold" }, known ? nats(kl_baseline) : "–"),
        " · ratio ", h("b", {}, known ? ratio(kl_top, kl_baseline) : "–"),
        ...(known && flips_top !== null ? [" · changed ", h("b", { class: "nx-hot" }, percent(flips_top)), " / ", h("b", { class: "nx-cold" }, flips_baseline === null ? "–" : percent(flips_baseline))] : []),
      );
      const { n_top, n_baseline } = judge ?? sweep ?? { n_top: 0, n_baseline: 0 };
      figures.title = `means over ${n_top} top examples, and over ${n_baseline} others drawn at random; changed: whose prediction is another one`;
      const [what, meaning] = sourceWords(effect, Boolean(traits.overview?.live));
      source.replaceChildren(h("b", {}, what), `: ${meaning}`);
      source.dataset.source = shown.source;
      const turned = [...strengths].filter(([, strength]) => strength !== 0).map(([component, strength]) => `component ${component} at ${written(strength, range)}`);
      const doing = `running the model with ${turned.join(", ")}`;
      if (work.state === "running") status.waiting(doing, work.progress, effect.cancel);
      else if (work.state === "failed") status.failed(doing, work.message, effect.retry);
      else if (work.state === "cancelled") status.cancelled(doing, effect.retry);
      else status.clear();
    },
  };
}
