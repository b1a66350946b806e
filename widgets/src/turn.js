/** "Turn it": the slider of the component in focus, and the KL plot with its readouts. */

/** @import { Context } from "./explorer.js" */
import { button, h } from "./dom.js";
import { klPlot } from "./kl_plot.js";
import { provenance, trustWords } from "./provenance.js";
import { onWidth } from "./resize.js";
import { written } from "./slide.js";
import { strengthSlider } from "./slider.js";
import { absent } from "./status_line.js";

const DEFAULT_WIDTH = 282;
const HEIGHT = 118;

/** Why there is nothing to turn. @param {Context} context @param {boolean} said is the reason on the screen already? */
export function whyNot({ focus }, said) {
  const { detail } = focus;
  if (!detail || focus.partial) return focus.state.status === "loading" ? "waiting for the component …" : "The component is not loaded.";
  if (said && detail.energy === null && detail.unavailable) return "No strengths were computed, for the same reason.";
  return detail.unavailable ?? "No strengths were computed.";
}

/** @param {Context} context */
export function turnIt(context) {
  const { traits, effect, theme, scope } = context;
  const { range } = effect;
  const slider = strengthSlider(range, "strength", { drag: (strength) => effect.drag(strength), commit: (strength) => effect.commit(strength) });
  const reset = button("reset strength to 0", "Reset", () => effect.commit(0));
  const plot = h("div", { class: "nx-plot" });
  const came = provenance(context);
  const also = h("p", { class: "nx-legend" });
  const legend = h(
    "p", { class: "nx-legend" }, "KL from the original in nats, √ scale · ", h("b", { class: "nx-hot" }, "top examples"), " · ",
    h("b", { class: "nx-cold" }, "others"), " · grey dashes: random direction of equal norm", h("span"),
  );
  let width = DEFAULT_WIDTH;

  function update() {
    const { shown, strength } = effect;
    slider.show(strength, !effect.ready, effect.trusted);
    reset.disabled = strength === 0;
    came.update();
    legend.hidden = !shown;
    /** @type {HTMLElement} */ (legend.lastElementChild).textContent = effect.trusted ? ` · ${trustWords(effect)}` : "";
    plot.replaceChildren(shown ? klPlot(effect, theme.colours, width, HEIGHT) : absent(whyNot(context, true)));
    const others = [...effect.strengths].filter(([component, turned]) => component !== traits.component && turned !== 0);
    also.hidden = others.length === 0;
    also.textContent = `turned too: ${others.map(([component, turned]) => `component ${component} at ${written(turned, range)}`).join(", ")}`;
  }

  effect.changed.on(update);
  theme.changed.on(update);
  onWidth(plot, scope, (available) => {
    width = available;
    update();
  });
  update();

  return h(
    "section", { class: "nx-turn", "aria-label": "turn it" },
    h("div", { class: "nx-head nx-turnhead" }, h("h3", {}, "Turn it"), h("span", { class: "nx-spring" }), slider.box, reset),
    h("div", { class: "nx-slider" }, slider.element), plot, ...came.elements, also, legend,
  );
}
