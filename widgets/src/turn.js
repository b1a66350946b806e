/** "Turn it": the slider, the KL plot with its readouts, and where the numbers on the screen come from. */

/** @import { Context } from "./explorer.js" */
import { button, h } from "./dom.js";
import { klPlot } from "./kl_plot.js";
import { decimals, nats, ratio, strength as signed } from "./numbers.js";
import { onWidth } from "./resize.js";
import { absent, statusPlace } from "./status_line.js";

const DEFAULT_WIDTH = 282;

/** @param {Context} context */
export function turnIt({ traits, focus, effect, theme, scope }) {
  const { low, high, step } = traits.overview?.strengths ?? { low: -1, high: 1, step: 0.01 };
  const digits = decimals(step);
  const slider = h("input", { type: "range", "aria-label": "strength", min: low, max: high, step });
  const box = h("input", { type: "number", class: "nx-box", "aria-label": "strength value", min: low, max: high, step });
  const reset = button("reset strength to 0", "Reset", () => effect.commit(0));
  const zero = h("span", { class: "nx-zero", "aria-hidden": "true" });
  const place = (/** @type {number} */ value) => (value - low) / (high - low || 1);
  zero.style.setProperty("--at", String(place(0)));

  slider.addEventListener("input", () => effect.drag(Number(slider.value)));
  slider.addEventListener("change", () => effect.commit(Number(slider.value)));
  /** While someone types, nothing may overwrite the box. */
  let typing = false;
  const commitBox = () => {
    typing = false;
    const value = Number(box.value);
    // an empty or impossible entry falls back to the strength that holds
    if (box.value.trim() === "" || !Number.isFinite(value)) return update();
    effect.commit(Math.max(low, Math.min(high, value)));
  };
  box.addEventListener("input", () => (typing = true));
  box.addEventListener("change", commitBox);
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter") commitBox();
    if (event.key === "Escape") {
      typing = false;
      update();
    }
  });

  const plot = h("div", { class: "nx-plot" });
  const figures = h("p", { class: "nx-figures", "aria-live": "off" });
  const status = statusPlace();
  const source = h("p", { class: "nx-source" });
  const legend = h(
    "p", { class: "nx-legend" }, "KL from the original in nats, √ scale · ", h("b", { class: "nx-hot" }, "top examples"), " · ",
    h("b", { class: "nx-cold" }, "others"), " · grey dashes: random direction of equal norm",
  );
  let width = DEFAULT_WIDTH;

  function writeControls() {
    const value = effect.strength;
    slider.value = String(value);
    slider.setAttribute("aria-valuetext", signed(value, digits));
    slider.style.setProperty("--from", `${100 * Math.min(place(0), place(value))}%`);
    slider.style.setProperty("--to", `${100 * Math.max(place(0), place(value))}%`);
    if (!typing) box.value = value.toFixed(digits);
    reset.disabled = value === 0;
    for (const control of [slider, box]) control.disabled = !effect.sweep;
  }

  /** @param {NonNullable<typeof effect.shown>["source"]} from */
  function writeSource(from) {
    const what = `running the model at ${signed(traits.strength, digits)}`;
    if (from === "running") status.waiting(what, effect.progress, effect.cancel);
    else if (from === "failed") status.failed(what, effect.message, effect.retry);
    else if (from === "cancelled") status.cancelled(what, effect.retry);
    else status.clear();
    source.textContent = {
      original: "the original model; move the slider to turn the component down (−) or up (+)",
      computed: "computed: the model was run at this strength",
      running: "interpolated until the answer comes",
      failed: "interpolated",
      cancelled: "interpolated",
      interpolated: traits.overview?.live ? "interpolated between computed strengths; let go to run the model"
        : "interpolated between computed strengths; run the notebook for the exact value",
    }[from];
  }

  function update() {
    writeControls();
    const { sweep, shown } = effect;
    legend.hidden = figures.hidden = source.hidden = !shown;
    if (!sweep || !shown) {
      const { detail } = focus;
      const why = !detail || focus.partial ? (focus.state.status === "loading" ? "waiting for the component …" : "The component is not loaded.")
        : detail.energy === null && detail.unavailable ? "No strengths were computed, for the same reason."
          : (detail.unavailable ?? "No strengths were computed.");
      plot.replaceChildren(absent(why));
      status.clear();
      return;
    }
    plot.replaceChildren(klPlot(sweep, { low, high }, effect.strength, shown.after, theme.colours, width));
    const { kl_top, kl_baseline } = shown.after;
    figures.replaceChildren(
      "KL top ", h("b", { class: "nx-hot" }, nats(kl_top)), " · others ", h("b", { class: "nx-cold" }, nats(kl_baseline)),
      " · ratio ", h("b", {}, ratio(kl_top, kl_baseline)),
    );
    figures.title = `mean over ${sweep.n_top} top examples, and over ${sweep.n_baseline} others drawn at random`;
    writeSource(shown.source);
  }

  effect.changed.on(update);
  theme.changed.on(update);
  onWidth(plot, scope, (available) => {
    width = available;
    update();
  });
  update();

  return h(
    "section", { "aria-label": "turn it" },
    h("div", { class: "nx-head nx-turnhead" }, h("h3", {}, "Turn it"), h("span", { class: "nx-spring" }), box, reset),
    h("div", { class: "nx-slider" },
      h("span", { class: "nx-dim" }, signed(low).replace(/\.?0+$/, "")), h("span", { class: "nx-track" }, slider, zero),
      h("span", { class: "nx-dim" }, signed(high).replace(/\.?0+$/, ""))),
    plot, figures, legend, status.element, source,
  );
}
