/** The KL plot under the slider. */

/** @import { Sweep } from "./protocol.js" */
/** @import { Theme } from "./theme.js" */
import { css } from "./colour.js";
import { curvePath, klScales, klTicks } from "./curve.js";
import { svg } from "./dom.js";
import { nats, strength as signed } from "./numbers.js";

const HEIGHT = 118;

/**
 * @param {Sweep} sweep
 * @param {{ low: number, high: number }} range
 * @param {number} strength
 * @param {{ kl_top: number, kl_baseline: number }} at
 * @param {Theme["colours"]} colours
 * @param {number} width
 */
export function klPlot(sweep, range, strength, at, { hot, cold, dim, line, ink }, width) {
  const box = { left: 32, right: width - 6, top: 8, bottom: HEIGHT - 20 };
  const scales = klScales(sweep, range, box);
  const picture = svg("svg", {
    width, height: HEIGHT, role: "img",
    "aria-label": `KL from the original over strength. At ${signed(strength)}: top examples ${nats(at.kl_top)} nats, others ${nats(at.kl_baseline)} nats`,
  });
  for (const tick of klTicks(scales, 15)) {
    const y = scales.y(tick);
    picture.append(
      svg("line", { x1: box.left, x2: box.right, y1: y, y2: y, stroke: css(line) }),
      svg("text", { x: box.left - 5, y: y + 4, "text-anchor": "end", fill: css(dim) }, String(tick)),
    );
  }
  picture.append(svg("line", { x1: scales.x(0), x2: scales.x(0), y1: box.top, y2: box.bottom, stroke: css(dim), "stroke-opacity": 0.5 }));
  /** @type {[number, "start" | "middle" | "end"][]} */
  const marks = [[range.low, "start"], [0, "middle"], [range.high, "end"]];
  for (const [value, anchor] of marks) {
    picture.append(svg("text", { x: scales.x(value), y: HEIGHT - 5, "text-anchor": anchor, fill: css(dim) }, value === 0 ? "0" : signed(value).replace(/\.?0+$/, "")));
  }
  const curves = /** @type {const} */ ([[sweep.kl_random, css(dim), "4 2"], [sweep.kl_baseline, css(cold), null], [sweep.kl_top, css(hot), null]]);
  for (const [values, colour, dash] of curves) {
    if (values.length === 0) continue;
    picture.append(svg("path", {
      d: curvePath(sweep.strengths, values, scales), fill: "none", stroke: colour, "stroke-width": dash ? 1.5 : 2, "stroke-linejoin": "round", "stroke-dasharray": dash,
    }));
  }
  const x = scales.x(strength);
  picture.append(
    svg("line", { x1: x, x2: x, y1: box.top - 4, y2: box.bottom, stroke: css(ink), "stroke-dasharray": "3 2" }),
    svg("circle", { cx: x, cy: scales.y(at.kl_baseline), r: 3, fill: css(cold) }),
    svg("circle", { cx: x, cy: scales.y(at.kl_top), r: 3.5, fill: css(hot) }),
  );
  return picture;
}
