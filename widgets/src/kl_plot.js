/** The KL plot under the slider: what turning this component alone does, and where the sliders stand. */

/** @import { Effect } from "./effect.js" */
/** @import { Theme } from "./theme.js" */
import { css } from "./colour.js";
import { curvePath, klScales, klTicks, strengthTicks } from "./curve.js";
import { svg } from "./dom.js";
import { nats, strength as signed } from "./numbers.js";
import { covers, runAt } from "./sweep.js";

/** Left of it stand the numbers of the KL; the slider above begins there too. */
export const LEFT = 32;
/** Half a thumb: as far from the end the slider's own middle stops. */
const RIGHT = 7;

/**
 * @param {Effect} effect
 * @param {Theme["colours"]} colours
 * @param {number} width
 * @param {number} height
 */
export function klPlot(effect, { hot, cold, dim, line, ink }, width, height) {
  const { range, sweep, trusted, strength } = effect;
  const { run, preview } = effect.curves;
  const at = effect.shown?.after;
  const box = { left: LEFT, right: Math.max(LEFT + 20, width - RIGHT), top: 8, bottom: height - 20 };
  const random = sweep?.kl_random ?? [];
  // beyond what was run the preview is all there is; where both are known the truth sets the scale
  /** @param {number} s */
  const beyond = (s) => !sweep || !run || !covers(sweep.strengths, s);
  const ahead = (preview?.strengths ?? []).flatMap((s, i) => (beyond(s) && preview ? [preview.top[i], preview.baseline[i] ?? 0] : []));
  const scales = klScales([...(run?.top ?? []), ...(run?.baseline ?? []), ...random, ...ahead, at?.kl_top ?? 0, at?.kl_baseline ?? 0], range, box);
  const known = effect.shown !== null && effect.shown.source !== "unknown";
  const said = at && known ? `At ${signed(strength)}: top examples ${nats(at.kl_top)} nats, others ${nats(at.kl_baseline)} nats` : "";
  const picture = svg("svg", { width, height, role: "img", "aria-label": `KL from the original over strength. ${said}` });
  if (trusted) {
    const [from, to] = trusted.map(scales.x);
    picture.append(svg("rect", { x: from, width: Math.max(0, to - from), y: box.top - 4, height: box.bottom - box.top + 4, fill: css(dim), "fill-opacity": 0.1 }));
  }
  for (const tick of klTicks(scales, 15)) {
    const y = scales.y(tick);
    picture.append(
      svg("line", { x1: box.left, x2: box.right, y1: y, y2: y, stroke: css(line) }),
      svg("text", { x: box.left - 5, y: y + 4, "text-anchor": "end", fill: css(dim) }, String(tick)),
    );
  }
  picture.append(svg("line", { x1: scales.x(0), x2: scales.x(0), y1: box.top, y2: box.bottom, stroke: css(dim), "stroke-opacity": 0.5 }));
  for (const tick of strengthTicks(scales, range, 30)) {
    const anchor = tick === range.high ? "end" : "middle";
    const x = tick === range.high ? width : scales.x(tick);
    picture.append(svg("text", { x, y: height - 5, "text-anchor": anchor, fill: css(dim) }, tick === 0 ? "0" : signed(tick).replace(/0$/, "").replace(/\.0?$/, "")));
  }
  /** @param {number[]} strengths @param {number[]} values @param {string} colour @param {Record<string, string | number>} style */
  const draw = (strengths, values, colour, style) => {
    if (values.length < 2) return;
    picture.append(svg("path", { d: curvePath(strengths, values, scales), fill: "none", stroke: colour, "stroke-linejoin": "round", "stroke-width": 2, ...style }));
  };
  if (sweep) draw(sweep.strengths, random, css(dim), { "stroke-dasharray": "4 2", "stroke-width": 1.5 });
  for (const [set, colour] of /** @type {["top" | "baseline", string][]} */ ([["baseline", css(cold)], ["top", css(hot)]])) {
    if (preview) {
      for (const side of [-1, 1]) {
        const away = preview.strengths.flatMap((s, i) => (s * side > 0 && beyond(s) ? [i] : []));
        draw(away.map((i) => preview.strengths[i]), away.map((i) => preview[set][i]), colour, { "stroke-dasharray": "1 4", "stroke-linecap": "round" });
      }
    }
    if (!run) continue;
    draw(run.strengths, run[set], colour, {});
    run.strengths.forEach((s, i) => {
      if (sweep && s !== 0 && run[set].length && runAt(sweep.strengths, s)) picture.append(svg("circle", { cx: scales.x(s), cy: scales.y(run[set][i]), r: 1.8, fill: colour }));
    });
  }
  if (at) {
    const x = scales.x(strength);
    picture.append(svg("line", { x1: x, x2: x, y1: box.top - 4, y2: box.bottom, stroke: css(ink), "stroke-dasharray": "3 2" }));
    if (known) {
      picture.append(
        svg("circle", { cx: x, cy: scales.y(at.kl_baseline), r: 3.5, fill: css(cold) }),
        svg("circle", { cx: x, cy: scales.y(at.kl_top), r: 4, fill: css(hot) }),
      );
    }
  }
  return picture;
}
