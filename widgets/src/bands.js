/** The coefficients of one component as a histogram, and buttons under it: the top examples, or some of each band. */

/** @import { Band, ComponentSummary } from "./protocol.js" */
import { focused, h, svg } from "./dom.js";
import { histogramPath } from "./histogram.js";
import { coefficient, count, percent } from "./numbers.js";

/** In the units of the picture, which is stretched to the width there is. */
const WIDTH = 240;
const HEIGHT = 34;
/** In place of the number of a band. */
export const TOP = -1;

/** @typedef {ReturnType<typeof bandPicture>} BandPicture */

/** In words. @param {Band} band */
export function bandName(band) {
  return band.high > 0 ? `${coefficient(band.low)}\u2009–\u2009${coefficient(band.high)}` : "zero";
}

/** Where it is narrow, the lower end alone stands under the histogram, as on an axis. @param {Band} band */
function ends(band) {
  return band.high > 0 ? h("span", {}, coefficient(band.low), h("span", { class: "nx-bandhigh" }, `\u2009–\u2009${coefficient(band.high)}`)) : h("span", {}, "zero");
}

/** Where a coefficient stands along the histogram, 0 to 1. @param {number} value @param {number} largest */
export function along(value, largest) {
  return largest > 0 ? Math.min(1, Math.max(0, value / largest)) : 0;
}

/** @param {(band: number) => void} choose */
export function bandPicture(choose) {
  const bars = svg("path", { class: "nx-bandbars" });
  const mark = svg("line", { class: "nx-bandmark", y1: 0, y2: HEIGHT, visibility: "hidden" });
  const ground = svg("rect", { class: "nx-bandground", y: 0, height: HEIGHT, width: 0 });
  const picture = svg("svg", { class: "nx-bandhist", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, ground, bars, mark);
  const none = svg("path", { class: "nx-bandbars" });
  const zero = svg("svg", { class: "nx-bandzero", viewBox: `0 0 60 ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, none);
  const buttons = h("div", { class: "nx-bandbuttons", role: "group", "aria-label": "which examples" });
  const element = h("div", { class: "nx-bands", hidden: true }, zero, picture, buttons);
  let largest = 0;

  return {
    element,
    /**
     * @param {ComponentSummary | null} summary
     * @param {Band[]} bands
     * @param {number} top examples in the list of the top ones
     * @param {number} chosen
     */
    draw(summary, bands, top, chosen) {
      element.hidden = !summary || bands.length < 2;
      if (!summary || element.hidden) return;
      largest = summary.max_coefficient;
      const last = bands.length - 1;
      // one scale for those with none and the others
      const tallest = Math.log1p(Math.max(1, bands[last].examples, ...summary.histogram));
      const height = (HEIGHT * Math.log1p(Math.max(...summary.histogram))) / tallest;
      bars.setAttribute("d", histogramPath(summary.histogram, WIDTH, height));
      bars.setAttribute("transform", `translate(0 ${HEIGHT - height})`);
      const zeros = (HEIGHT * Math.log1p(bands[last].examples)) / tallest;
      none.setAttribute("d", `M20 ${HEIGHT}v${-zeros}h20v${zeros}z`);
      const quarter = WIDTH / last;
      const at = chosen === TOP || chosen === last ? -1 : last - 1 - chosen;
      ground.setAttribute("x", String(Math.max(0, at * quarter)));
      ground.setAttribute("width", String(at < 0 ? 0 : quarter));
      const held = focused(buttons);
      const place = held ? [...buttons.children].indexOf(held) : -1;
      buttons.replaceChildren(...bands.map((_, i) => {
        const number = last - i; // the smallest first, as in the histogram
        const band = bands[number];
        const name = `examples ${band.high > 0 ? `with coefficients above ${coefficient(band.low)} up to ${coefficient(band.high)}` : "without this component"}: ${count(band.examples)}, ${percent(band.share, 1)} of all`;
        return choice(name, ends(band), percent(band.share, band.share < 0.1 ? 1 : 0), number, chosen === number, band.examples === 0);
      }), choice(`the ${top} top examples`, h("span", {}, "top"), count(top), TOP, chosen === TOP, false));
      if (place >= 0) /** @type {HTMLElement} */ (buttons.children[place])?.focus({ preventScroll: true });
    },
    /** Marks one example's coefficient. @param {number | null} value */
    mark(value) {
      const x = String(WIDTH * along(value ?? 0, largest));
      mark.setAttribute("x1", x);
      mark.setAttribute("x2", x);
      mark.setAttribute("visibility", value === null || !(value > 0) ? "hidden" : "visible");
    },
  };

  /** @param {string} name @param {HTMLElement} text @param {string} figure @param {number} number @param {boolean} pressed @param {boolean} empty */
  function choice(name, text, figure, number, pressed, empty) {
    const element = h("button", { type: "button", title: name, "aria-pressed": String(pressed), disabled: empty }, text, " ", h("small", {}, figure));
    element.addEventListener("click", () => choose(number));
    return element;
  }
}
