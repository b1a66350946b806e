/** "Where it lives": the squared direction over layers and kinds of weights, last layer on top. */

/** @import { ComponentDetail } from "./protocol.js" */
/** @import { Context } from "./explorer.js" */
import { css, over, readable } from "./colour.js";
import { h, svg } from "./dom.js";
import { ellipsis, shortKind } from "./kinds.js";
import { percent } from "./numbers.js";
import { onWidth } from "./resize.js";
import { absent } from "./status_line.js";

/** The width before the browser says how much room there is. */
const DEFAULT_WIDTH = 282;
/** Cells this strong carry their number, where it fits. */
const WRITTEN = 0.05;

/** @param {Context} context */
export function layerMap({ focus, theme, scope }) {
  const map = h("div", { class: "nx-map" });
  const below = h("p", { class: "nx-legend" });
  let width = DEFAULT_WIDTH;

  /** @param {NonNullable<ComponentDetail["energy"]>} energy */
  function draw({ layers, kinds, values }) {
    const { cold, paper, ink, dim } = theme.colours;
    const left = Math.min(64, 8 + 6.4 * Math.max(...layers.map((layer) => Math.min(9, layer.length))));
    // two words stand on two lines: "MLP out" does not fit over a cell
    const heads = kinds.map((kind) => shortKind(kind).split(" "));
    const top = Math.max(...heads.map((words) => words.length)) > 1 ? 30 : 18;
    const pitch = { x: (width - left) / kinds.length, y: Math.min(21, Math.max(9, 300 / layers.length)) };
    const gap = pitch.y > 12 ? 3 : 1;
    // labels are 11 px tall; where the rows are lower, only every second, third … one is named
    const every = Math.ceil(13 / pitch.y);
    const largest = Math.max(1e-12, ...values.flat().map((value) => value ?? 0));
    let strongest = "";
    const picture = svg("svg", { width, height: top + layers.length * pitch.y, role: "img" });
    kinds.forEach((kind, x) => {
      const [first, ...rest] = heads[x];
      const lines = rest.length ? [first, rest.join(" ")] : [first];
      lines.forEach((line, i) => picture.append(svg(
        "text", { x: left + (x + 0.5) * pitch.x - gap / 2, y: top - 7 - 12 * (lines.length - 1 - i), "text-anchor": "middle", fill: css(dim) },
        svg("title", {}, kind), ellipsis(line, Math.max(2, Math.floor(pitch.x / 6))),
      )));
    });
    layers.forEach((layer, l) => {
      const y = top + (layers.length - 1 - l) * pitch.y;
      if ((layers.length - 1 - l) % every === 0) {
        picture.append(svg("text", { x: 0, y: y + (pitch.y - gap) / 2 + 4, fill: css(dim) }, svg("title", {}, layer), ellipsis(layer, 9)));
      }
      kinds.forEach((kind, x) => {
        const value = values[l]?.[x] ?? null;
        const cell = { x: left + x * pitch.x, y, width: pitch.x - gap, height: pitch.y - gap, rx: 2 };
        if (value === null) {
          picture.append(svg("rect", { ...cell, class: "nx-nocell" }, svg("title", {}, `${layer} · ${kind}: not there`)));
          return;
        }
        const ground = over(cold, paper, 0.04 + 0.9 * (value / largest));
        const told = `${layer} · ${kind}: ${percent(value, 1)} of the squared direction`;
        if (value === largest) strongest = told;
        picture.append(svg("rect", { ...cell, fill: css(ground) }, svg("title", {}, told)));
        if (value >= WRITTEN && cell.width >= 30 && cell.height >= 15) {
          picture.append(svg("text", {
            class: "nx-cellnumber", x: cell.x + cell.width / 2, y: cell.y + cell.height / 2 + 4, "text-anchor": "middle", fill: css(readable(ground, ink)),
          }, percent(value)));
        }
      });
    });
    picture.setAttribute("aria-label", `Where it lives, by layer and kind of weight. Strongest: ${strongest}`);
    map.replaceChildren(picture);
  }

  function update() {
    const { detail } = focus;
    if (!detail || (focus.partial && !detail.energy)) {
      map.replaceChildren(absent(focus.state.status === "loading" ? "waiting for the component …" : "The component is not loaded."));
      below.replaceChildren();
      return;
    }
    if (detail.energy) draw(detail.energy);
    else map.replaceChildren(absent(detail.unavailable ?? "The direction was not computed."));
    const others = detail.other_energy.filter(({ value }) => value > 0).map(({ name, value }) => `${name} ${percent(value, value < 0.01 ? 1 : 0)}`);
    below.textContent = others.length ? `besides: ${others.join(" · ")}` : "";
  }

  focus.changed.on(update);
  theme.changed.on(update);
  onWidth(map, scope, (available) => {
    width = available;
    update();
  });

  return h("section", { "aria-label": "where it lives" }, h("h3", {}, "Where it lives"), map, below);
}
