/** Components as points, near each other where their directions are alike: to see families, and to take hold of several at once. */

/** @import { Overview, ComponentSummary, Tops } from "./protocol.js" */
/** @import { Context } from "./explorer.js" */
/** @import { Point } from "./mapping.js" */
import { CATEGORIES } from "./colour.js";
import { button, h, svg } from "./dom.js";
import { inFigures, line } from "./figures.js";
import { ellipsis } from "./kinds.js";
import { labelOf } from "./listing.js";
import { dotAt, fit, inside, next, placeLabels, radius, spread } from "./mapping.js";
import { percent } from "./numbers.js";
import { Cancelled } from "./requests.js";
import { onWidth } from "./resize.js";
import { absent, statusPlace } from "./status_line.js";

const MARGIN = 22;
/** Pixels beside a dot that still mean it. */
const REACH = 8;
/** A press that moves less is a click. */
const STILL = 5;
const LABEL = { longest: 24, height: 15, perCharacter: 6.3 };
/** Cosines below this are what any two directions have. */
const ALIKE = 0.2;
const OTHER = "var(--nx-dim)";

/** Top examples that are picked of each component in the lasso, and of all together: a list that can still be read. */
const PICKED = 3;
const MOST_PICKED = 60;

/** @type {Record<string, [number, number]>} */
const ARROWS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** @typedef {{ summary: ComponentSummary, group: SVGGElement, dot: SVGCircleElement, ring: SVGCircleElement, mark: SVGTextElement }} Dot */

/** @param {Context} context */
export function componentMap({ traits, view, focus, requests, scope }) {
  const overview = /** @type {Overview} */ (traits.overview);
  const title = h("h3", {}, "Components by direction");
  if (!overview.places) return h("section", { "aria-label": "map of components" }, h("div", { class: "nx-head" }, title), absent("A map needs at least three components."));

  const places = overview.places;
  const summaries = overview.components;
  const classes = classColours(overview);
  const largest = Math.max(...summaries.map(({ share }) => share));
  const byShare = summaries.map((_, i) => i).sort((a, b) => summaries[b].share - summaries[a].share || a - b);
  const indexOf = new Map(summaries.map(({ component }, i) => [component, i]));

  /** Components that the person took hold of, in the order of their numbers; nothing outside this panel depends on it. @type {Set<number>} */
  const gathered = new Set();
  /** The class that the legend points at. */
  let pointed = "";
  /** @type {Point[]} */
  let points = places.map(() => ({ x: 0, y: 0 }));
  /** @type {number[]} */
  let radii = places.map(() => 0);
  let size = { width: 0, height: 0 };
  let active = indexOf.get(traits.component) ?? 0;
  let hovered = -1;

  const links = svg("g", { class: "nx-links" });
  const layer = svg("g");
  const names = svg("g", { class: "nx-names", "aria-hidden": "true" });
  const rope = svg("path", { class: "nx-rope" });
  const picture = svg("svg", { role: "listbox", "aria-label": "map of components", "aria-multiselectable": "true" }, links, layer, names, rope);
  const tip = h("div", { class: "nx-tip", "aria-hidden": "true", hidden: true });
  const holder = h("div", { class: "nx-mapplace" }, picture, tip);

  /** @type {Dot[]} */
  const dots = summaries.map((summary) => {
    const ring = svg("circle", { class: "nx-ring" });
    const dot = svg("circle", { class: "nx-dot", fill: classes.colour(summary.main_label) });
    const mark = svg("text", { class: "nx-mark", "aria-hidden": "true" });
    const group = svg("g", { role: "option", tabindex: -1 }, ring, dot, mark);
    return { summary, group, dot, ring, mark };
  });
  // small ones last, so that none is hidden under a large one
  layer.append(...byShare.map((i) => dots[i].group));

  const lasso = button("draw a lasso by finger", "Lasso", () => {
    const on = lasso.getAttribute("aria-pressed") !== "true";
    lasso.setAttribute("aria-pressed", String(on));
    holder.classList.toggle("nx-lassoing", on);
  }, { "aria-pressed": "false", title: "with a mouse, drag; by finger, press this first" });

  const legend = h("div", { class: "nx-striplegend nx-legend", role: "group", "aria-label": "colours by main class" }, h("span", {}, "main class"),
    ...classes.names.map((name) => {
      const swatch = h("i", { "aria-hidden": "true" });
      swatch.style.background = classes.colour(name);
      const one = h("button", { type: "button", class: "nx-swatch nx-class-button", "aria-pressed": "false", title: "show this class alone" }, swatch, line(name, 40));
      one.addEventListener("click", () => {
        pointed = pointed === name ? "" : name;
        for (const other of legend.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === one && pointed !== ""));
        describe();
      });
      return one;
    }));

  // ------------------------------------------------------------------------------------------------------------------ what was gathered

  const summary = h("p", { class: "nx-sentence", role: "status" });
  const list = h("ul", { class: "nx-gathered", "aria-label": "components in the lasso" });
  const trouble = statusPlace();
  const star = button("star all components in the lasso", "Star all", () => {
    const stars = new Set(traits.get("stars"));
    const all = [...gathered].every((number) => stars.has(number));
    for (const number of gathered) if (all) stars.delete(number); else stars.add(number);
    traits.update({ stars: [...stars].sort((a, b) => a - b) });
  });
  const pick = button("pick the top examples of the components in the lasso", "Pick their top examples", pickTops);
  const empty = button("empty the lasso", "Empty", () => gather([]));
  const tools = h("div", { class: "nx-gatheredtools" }, star, pick, empty);
  const aside = h("div", { class: "nx-maplist" }, h("h3", {}, "In the lasso"), summary, tools, trouble.element, list);

  function pickTops() {
    const components = [...gathered];
    const pending = requests.ask({ ask: "tops", components });
    trouble.waiting("top examples", null, () => pending.cancel());
    pending.promise.then(
      (/** @type {Tops} */ { rows }) => {
        trouble.clear();
        const each = Math.max(1, Math.min(PICKED, Math.floor(MOST_PICKED / rows.length)));
        const some = rows.flatMap((of) => of.slice(0, each)).slice(0, MOST_PICKED);
        traits.update({ selection: [...new Set([...traits.selection, ...some])] });
      },
      (error) => {
        if (error instanceof Cancelled) trouble.cancelled("top examples", pickTops);
        else trouble.failed("top examples", error.message, pickTops);
      },
    );
  }

  /** @param {Iterable<number>} numbers */
  function gather(numbers) {
    const now = [...new Set(numbers)].sort((a, b) => a - b);
    gathered.clear();
    for (const number of now) gathered.add(number);
    trouble.clear();
    describe();
    showGathered();
  }

  function showGathered() {
    const some = summaries.filter(({ component }) => gathered.has(component));
    const stars = new Set(traits.get("stars"));
    tools.hidden = some.length === 0;
    star.textContent = some.every(({ component }) => stars.has(component)) ? "Unstar all" : "Star all";
    const share = some.reduce((sum, one) => sum + one.share, 0);
    summary.textContent = some.length === 0 ? "Drag around dots to take hold of several, with shift to add more; by keyboard, L on a dot."
      : [`${some.length} component${some.length > 1 ? "s" : ""}`, `${percent(share)} of the explained energy`, commonest(some)].filter(Boolean).join(" · ");
    list.replaceChildren(...some.map(({ component }) => h("li", {},
      button(`show component ${component}`, `${component} ${line(traits.label(component))}`, () => traits.update({ component }), { class: "nx-gatheredname" }),
      button(`take component ${component} out of the lasso`, "×", () => gather([...gathered].filter((other) => other !== component)), { class: "nx-icon" }))));
  }

  // ------------------------------------------------------------------------------------------------------------------ drawing

  /** What dots say and how they are marked; where they stand is another matter. */
  function describe() {
    const labels = traits.get("labels");
    const stars = new Set(traits.get("stars"));
    const shown = new Set(view.components.map(({ component }) => component));
    dots.forEach(({ summary, group, mark }, i) => {
      const number = summary.component;
      const states = {
        "nx-chosen": number === traits.component, "nx-pinned": number === traits.get("pinned"), "nx-taken": gathered.has(number), "nx-starred": stars.has(number),
        "nx-faded": !shown.has(number) || (pointed !== "" && summary.main_label !== pointed),
      };
      for (const [name, on] of Object.entries(states)) group.classList.toggle(name, on);
      group.setAttribute("aria-selected", String(states["nx-chosen"]));
      group.setAttribute("aria-label", [
        `component ${number}: ${line(labelOf(summary, labels))}, ${inFigures(summary)}`, stars.has(number) && "starred", states["nx-pinned"] && "pinned",
        gathered.has(number) && "in the lasso", view.query.trim() && !shown.has(number) && "does not match the search",
      ].filter(Boolean).join(", "));
      group.setAttribute("tabindex", i === active ? "0" : "-1");
      mark.textContent = stars.has(number) ? "★" : "";
    });
    drawNames();
    drawLinks();
  }

  function drawNames() {
    const labels = traits.get("labels");
    const seen = (/** @type {number} */ i) => !dots[i].group.classList.contains("nx-faded");
    const first = indexOf.get(traits.component) ?? -1;
    const wanted = [...(first >= 0 ? [first] : []), ...byShare.filter((i) => i !== first)].filter(seen).slice(0, 80)
      .map((index) => ({ index, text: line(ellipsis(labelOf(summaries[index], labels), LABEL.longest)) }));
    const placed = size.width === 0 ? []
      : placeLabels(points, radii, wanted.map(({ index, text }) => ({ index, width: LABEL.perCharacter * text.length + 4 })), LABEL.height, { x: 2, y: 2, width: size.width - 4, height: size.height - 4 });
    names.replaceChildren(...placed.map(({ index, x, y }) => {
      const text = wanted.find((one) => one.index === index)?.text ?? "";
      return svg("text", { x: x + 2, y, dy: "0.35em", class: index === first ? "nx-chosen" : null }, text);
    }));
  }

  /** The plane cannot keep all angles, so the nearest by angle are tied to the one in focus. */
  function drawLinks() {
    const from = indexOf.get(traits.component);
    const neighbours = focus.detail?.neighbours ?? [];
    links.replaceChildren(...(from === undefined ? [] : neighbours).flatMap(({ component, cosine }) => {
      const to = indexOf.get(component);
      if (to === undefined || Math.abs(cosine) < ALIKE || from === undefined) return [];
      return [svg("line", { x1: points[from].x, y1: points[from].y, x2: points[to].x, y2: points[to].y, "stroke-opacity": Math.min(1, Math.abs(cosine)) })];
    }));
  }

  /** @param {number} width */
  function draw(width) {
    const height = Math.round(Math.min(600, Math.max(300, 0.7 * width)));
    size = { width, height };
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.style.height = `${height}px`;
    const box = { x: MARGIN, y: MARGIN, width: width - 2 * MARGIN, height: height - 2 * MARGIN };
    // so that all dots together cover at most a tenth of the ground
    const most = Math.min(18, Math.sqrt((0.1 * width * height) / Math.PI / Math.max(1, summaries.reduce((sum, { share }) => sum + share, 0) / largest)));
    radii = summaries.map(({ share }) => radius(share, largest, most));
    points = spread(fit(places, box), radii, { x: 6, y: 6, width: width - 12, height: height - 12 });
    dots.forEach(({ dot, ring, mark }, i) => {
      for (const circle of [dot, ring]) {
        circle.setAttribute("cx", points[i].x.toFixed(1));
        circle.setAttribute("cy", points[i].y.toFixed(1));
      }
      dot.setAttribute("r", radii[i].toFixed(1));
      ring.setAttribute("r", (radii[i] + 3.5).toFixed(1));
      mark.setAttribute("x", (points[i].x + 0.7 * radii[i]).toFixed(1));
      mark.setAttribute("y", (points[i].y - 0.7 * radii[i]).toFixed(1));
    });
    drawNames();
    drawLinks();
  }

  // ------------------------------------------------------------------------------------------------------------------ pointer and keys

  /** @param {number} index -1 for none */
  function hover(index) {
    if (index === hovered) return;
    dots[hovered]?.group.classList.remove("nx-hovered");
    dots[index]?.group.classList.add("nx-hovered");
    hovered = index;
    tip.hidden = index < 0;
    if (index < 0) return;
    const { summary } = dots[index];
    tip.replaceChildren(h("b", {}, `${summary.component} ${line(traits.label(summary.component))}`), h("br"), inFigures(summary));
    const { x, y } = points[index];
    tip.style.left = `${Math.max(0, Math.min(x + radii[index] + 8, size.width - tip.offsetWidth))}px`;
    tip.style.top = `${y + radii[index] + 10 + tip.offsetHeight > size.height ? y - radii[index] - 10 - tip.offsetHeight : y + radii[index] + 10}px`;
  }

  /** @param {MouseEvent} event @returns {Point} */
  function where(event) {
    const { left, top } = picture.getBoundingClientRect();
    return { x: event.clientX - left, y: event.clientY - top };
  }

  /** @type {{ line: Point[], add: boolean, moved: boolean } | null} */
  let press = null;

  picture.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || (event.pointerType === "touch" && !event.isPrimary)) return;
    press = { line: [where(event)], add: event.shiftKey, moved: false };
  });
  picture.addEventListener("pointermove", (event) => {
    const at = where(event);
    if (!press) return hover(dotAt(points, radii, at, REACH));
    const start = press.line[0];
    if (!press.moved && Math.hypot(at.x - start.x, at.y - start.y) < STILL) return;
    if (event.pointerType === "touch" && lasso.getAttribute("aria-pressed") !== "true") return; // a finger that moves scrolls the page
    if (!press.moved) {
      press.moved = true;
      hover(-1);
      picture.setPointerCapture?.(event.pointerId);
    }
    press.line.push(at);
    rope.setAttribute("d", `M${press.line.map(({ x, y }) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}Z`);
  });
  const release = () => {
    press = null;
    rope.removeAttribute("d");
  };
  picture.addEventListener("pointerup", (event) => {
    const done = press;
    release();
    if (!done) return;
    if (done.moved) {
      const caught = dots.filter(({ group }, i) => !group.classList.contains("nx-faded") && inside(done.line, points[i])).map(({ summary }) => summary.component);
      return gather(done.add ? [...gathered, ...caught] : caught);
    }
    const at = where(event);
    const hit = dotAt(points, radii, at, REACH);
    if (hit < 0 || Math.hypot(at.x - done.line[0].x, at.y - done.line[0].y) >= STILL) return; // a swipe is no tap
    moveTo(hit);
    if (event.shiftKey) toggle(hit);
    else traits.update({ component: summaries[hit].component });
  });
  picture.addEventListener("pointercancel", release);
  picture.addEventListener("pointerleave", () => hover(-1));

  /** @param {number} index */
  function toggle(index) {
    const number = summaries[index].component;
    gather(gathered.has(number) ? [...gathered].filter((other) => other !== number) : [...gathered, number]);
  }

  /** @param {number} index */
  function moveTo(index) {
    dots[active].group.setAttribute("tabindex", "-1");
    dots[index].group.setAttribute("tabindex", "0");
    active = index;
    dots[index].group.focus({ preventScroll: true });
  }

  picture.addEventListener("focusin", () => hover(active));
  picture.addEventListener("focusout", () => hover(-1));
  picture.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const seen = (/** @type {number} */ i) => !dots[i].group.classList.contains("nx-faded");
    if (event.key in ARROWS) moveTo(next(points, active, ...ARROWS[event.key], seen));
    else if (event.key === "Home") moveTo(byShare.find(seen) ?? active);
    else if (event.key === "End") moveTo([...byShare].reverse().find(seen) ?? active);
    else if (event.key === "Enter" || event.key === " ") traits.update({ component: summaries[active].component });
    else if (event.key.toLowerCase() === "l") toggle(active);
    else if (event.key === "s") traits.star(summaries[active].component);
    else if (event.key === "Escape" && press) release();
    else if (event.key === "Escape" && gathered.size) gather([]);
    else return;
    event.preventDefault();
  });

  view.changed.on(describe);
  focus.changed.on(drawLinks);
  traits.onChange(scope, ["pinned"], describe);
  traits.onChange(scope, ["component"], () => {
    active = indexOf.get(traits.component) ?? active;
    describe();
  });
  traits.onChange(scope, ["labels", "stars"], showGathered);
  onWidth(holder, scope, draw);
  describe();
  showGathered();

  return h("section", { "aria-label": "map of components" },
    h("div", { class: "nx-head" }, title, h("span", { class: "nx-spring" }), lasso),
    h("div", { class: "nx-mapbody" }, h("div", { class: "nx-mapside" }, holder, legend), aside),
    h("p", { class: "nx-legend" }, "places: by |cos| of the directions, neighbours kept together (t-SNE), so near means alike and far says little · "
      + "area: share of the explained energy · lines: the nearest of the component in focus · arrows move, Enter shows, S stars, L takes into the lasso"));
}

/**
 * A colour for each main class, the same as the heatmap's strip has where it is coloured by such a column.
 * @param {Overview} overview
 */
export function classColours({ components, columns }) {
  const used = [...new Set(components.map(({ main_label }) => main_label))].filter(Boolean).sort();
  const column = columns.find(({ values }) => used.every((name) => values.includes(name)));
  const known = column?.values ?? used;
  /** @param {string} name */
  const colour = (name) => CATEGORIES[known.indexOf(name)] ?? OTHER;
  return { names: known.filter((name) => used.includes(name)), colour };
}

/** "mostly NUM (3)" @param {ComponentSummary[]} components */
function commonest(components) {
  /** @type {Map<string, number>} */
  const counts = new Map();
  for (const { main_label } of components) if (main_label) counts.set(main_label, (counts.get(main_label) ?? 0) + 1);
  const [best] = [...counts].sort((a, b) => b[1] - a[1]);
  return best ? `${best[1]} of them ${line(best[0], 40)}` : "";
}
