/** The trace of one example through the network: where the edit enters and how it reaches the prediction. */

/** @import { TraceAnswer, TraceEdge } from "./protocol.js" */
/** @import { Context } from "./explorer.js" */
/** @import { Pending } from "./requests.js" */
/** @import { Drawn } from "./trace_geometry.js" */
import { h, svg } from "./dom.js";
import { percent } from "./numbers.js";
import { Cancelled } from "./requests.js";
import { onWidth } from "./resize.js";
import { statusPlace } from "./status_line.js";
import { visibleText } from "./tokens.js";
import { OPACITY, SHARES, amount, edgesOf, heightName, nearest, pathOf, places, pointAt, said, signed, top } from "./trace_geometry.js";

/** The step of the slider to begin with: 2 % of the strongest edge. */
const BEGIN = 1;
/** Traces that are kept. */
const KEPT = 12;
/** Pixels beside the tokens: names of the layers, and what each introduces; in a wide place and in a narrow one, which is less than so many. */
const WIDE = { names: 84, bars: 110 };
const NARROW = { names: 44, bars: 54, below: 600 };
/** Characters of a token under the picture. */
const LETTERS = 12;

/** @type {TraceEdge["kind"][]} */
const KINDS = ["introduced", "passed on", "residual"];

/** @param {Context} context */
export function tracePanel({ traits, focus, examples, requests, scope }) {
  const example = h("select", { "aria-label": "what is traced", class: "nx-which" });
  const classes = h("select", { "aria-label": "logit of which class" });
  const least = h("input", { type: "range", min: 0, max: SHARES.length - 1, step: 1, "aria-label": "weakest edges shown" });
  least.value = String(BEGIN);
  const leastOut = h("span", { class: "nx-dim" });
  const boxes = new Map(KINDS.map((kind) => {
    const box = h("input", { type: "checkbox" });
    box.checked = true;
    box.addEventListener("change", draw);
    return [kind, box];
  }));
  const bar = h("div", { class: "nx-controls" }, h("label", {}, "of ", example), h("label", {}, "logit of ", classes),
    h("label", { class: "nx-leastlabel" }, "edges from ", least, leastOut));
  const kinds = h("div", { class: "nx-controls nx-kinds", role: "group", "aria-label": "kinds of edges" },
    ...[...boxes].map(([kind, box]) => h("label", {}, box, " ", kindLine(kind), " ", kind)),
    h("span", { class: "nx-legend" }, h("b", { class: "nx-hot" }, "orange: towards the class"), " · ", h("b", { class: "nx-cold" }, "blue, dashed: against it")));
  const status = statusPlace();
  const sentence = h("p", { class: "nx-sentence" });
  const names = svg("svg", { class: "nx-tracenames", "aria-hidden": "true" });
  const lines = svg("g");
  const chosen = svg("g", { class: "nx-traceon" });
  const ground = svg("g", { class: "nx-traceground" });
  const picture = svg("svg", { "aria-hidden": "true" }, ground, lines, chosen);
  const scroll = h("div", { class: "nx-tracescroll", tabindex: 0, role: "group", "aria-label": "trace; arrow keys walk the edges, the strongest first" }, picture);
  const bars = svg("svg", { class: "nx-tracebars", role: "img" });
  const readout = h("p", { class: "nx-readout", "aria-live": "polite" });
  const body = h("div", { class: "nx-tracebody", hidden: true }, names, scroll, bars);
  const element = h("section", { class: "nx-trace", "aria-label": "trace" },
    h("div", { class: "nx-head" }, h("h3", {}, "Where the edit enters and how it reaches the prediction")), bar, status.element, sentence, kinds, body, readout);

  /** @type {Map<string, TraceAnswer>} */
  const known = new Map();
  /** @type {{ key: string, pending: Pending<TraceAnswer> } | null} */
  let running = null;
  /** @type {string} the question that failed or was cancelled, not to be asked again by itself */
  let given = "";
  /** @type {TraceAnswer | null} */
  let answer = null;
  /** @type {Drawn[]} */
  let drawn = [];
  let at = -1;
  /** The class by name: another example has the same. */
  let wanted = "";
  let room = 600;
  /** @type {{ names: number, bars: number }} */
  let beside = WIDE;

  // ---------------------------------------------------------------------------------------------------------- what is traced

  /** An example, or the person's own text, or the strongest example. @returns {{ row: number, text: string } | null} */
  function question() {
    const row = traits.get("example");
    const text = traits.get("text");
    const first = focus.detail?.top[0]?.row;
    if (row >= 0) return { row, text: "" };
    if (text.trim()) return { row: -1, text };
    return first === undefined ? null : { row: first, text: "" };
  }

  function writeExamples() {
    const asked = question();
    const rows = (focus.detail?.top ?? []).map(({ row, text }) => ({ row, text }));
    if (asked && asked.row >= 0 && !rows.some(({ row }) => row === asked.row)) {
      examples.want([asked.row]);
      rows.unshift({ row: asked.row, text: examples.get(asked.row)?.text ?? "…" });
    }
    const own = traits.get("text").trim();
    example.replaceChildren(...(own ? [h("option", { value: -1 }, `my text: ${visibleText(own, 60)}`)] : []),
      ...rows.map(({ row, text }) => h("option", { value: row }, `example ${row}: ${visibleText(text, 60)}`)));
    if (asked) example.value = String(asked.row);
  }

  function load() {
    writeExamples();
    const component = traits.component;
    const asked = question();
    const key = asked ? `${component} ${asked.row} ${asked.text}` : "";
    if (running && running.key !== key) {
      const { pending } = running;
      running = null;
      pending.cancel();
    }
    if (key && known.has(key)) {
      status.clear();
      show(/** @type {TraceAnswer} */ (known.get(key)));
      return;
    }
    if (!asked) {
      status.clear();
      if (answer?.component !== component) show(null);
      sentence.textContent = focus.detail ? "No example uses this component: there is nothing to trace." : "";
      return;
    }
    if (running || given === key) return;
    const what = `the trace of component ${component}`;
    const again = () => {
      given = "";
      load();
    };
    if (!traits.overview?.live) {
      show(null);
      status.clear();
      sentence.textContent = "A trace needs the model, and this page has none: in the notebook, attach it with npeff.attach(model, tokenizer).";
      return;
    }
    given = "";
    const pending = requests.ask({ ask: "trace", component, ...asked }, (progress) => {
      if (running?.pending === pending) status.waiting(what, progress, pending.cancel);
    });
    const mine = { key, pending };
    running = mine;
    status.waiting(what, null, pending.cancel);
    body.classList.add("nx-stale");
    pending.promise.then(
      (/** @type {TraceAnswer} */ found) => {
        known.set(key, found);
        while (known.size > KEPT) known.delete(/** @type {string} */ (known.keys().next().value));
        if (running !== mine) return;
        running = null;
        status.clear();
        show(found);
      },
      (error) => {
        if (running !== mine) return;
        running = null;
        given = key;
        show(null);
        if (error instanceof Cancelled) status.cancelled(what, again);
        else status.failed(what, error.message, again);
      },
    );
  }

  // ---------------------------------------------------------------------------------------------------------- the picture

  /** @param {TraceAnswer | null} found */
  function show(found) {
    body.classList.remove("nx-stale");
    body.hidden = kinds.hidden = readout.hidden = !found;
    for (const part of [classes, least]) /** @type {HTMLElement} */ (part.parentElement).hidden = !found;
    if (found !== answer || !found) {
      answer = found;
      at = -1;
      sentence.textContent = "";
    }
    if (!found) return;
    classes.replaceChildren(...found.classes.map((name, i) => h("option", { value: i }, `${visibleText(name, 40)} ${signed(found.derivative[i])}`)));
    const likeliest = found.logits.indexOf(Math.max(...found.logits));
    classes.value = String(found.classes.includes(wanted) ? found.classes.indexOf(wanted) : likeliest);
    draw();
  }

  function draw() {
    if (!answer) return;
    const number = Number(classes.value);
    const place = places(answer, room);
    const share = SHARES[Number(least.value)];
    leastOut.textContent = ` ${percent(share)} of the strongest`;
    least.setAttribute("aria-valuetext", `${percent(share)} of the strongest`);
    drawn = edgesOf(answer, number, share, new Set(KINDS.filter((kind) => boxes.get(kind)?.checked)), place);
    at = Math.min(at, drawn.length - 1);
    const name = visibleText(answer.classes[number], 80);
    sentence.textContent = `The logit of ${name} changes by ${signed(answer.derivative[number])} a unit of strength; ${drawn.length} edges are shown.`;

    // below the picture stand the tokens, slanted
    const foot = 58;
    const height = place.height + foot;
    picture.setAttribute("width", String(place.width));
    picture.setAttribute("height", String(height));
    for (const [part, width] of /** @type {[SVGElement, number][]} */ ([[names, beside.names], [bars, beside.bars]])) {
      part.setAttribute("width", String(width));
      part.setAttribute("height", String(height));
    }
    body.style.gridTemplateColumns = `${beside.names}px minmax(0, 1fr) ${beside.bars}px`;
    const heights = Array.from({ length: top(answer) + 1 }, (_, i) => i);
    ground.replaceChildren(
      ...heights.map((i) => svg("line", { x1: 0, x2: place.width, y1: place.y(i), y2: place.y(i) })),
      ...answer.tokens.map((token, t) => {
        const x = place.x(t);
        const y = place.height + 2;
        return svg("text", { x, y, transform: `rotate(-40 ${x.toFixed(1)} ${y.toFixed(1)})`, "text-anchor": "end" }, visibleText(token, LETTERS), svg("title", {}, visibleText(token, 200)));
      }),
    );
    names.replaceChildren(...heights.map((i) => svg("text", { x: beside.names - 4, y: place.y(i) + 4, "text-anchor": "end" },
      heightName(/** @type {TraceAnswer} */ (answer), i, beside === NARROW))));
    // the strongest is drawn last, over the others
    lines.replaceChildren(...[...drawn].reverse().map(edgePath));
    drawBars(number, place);
    mark();
  }

  /** @param {Drawn} one */
  function edgePath({ edge, value, width, points }) {
    return svg("path", { class: value > 0 ? "nx-towards" : "nx-against", d: pathOf(points), "stroke-width": width.toFixed(1), opacity: OPACITY[edge.kind] });
  }

  /** What each height introduces in sum. @param {number} number @param {ReturnType<typeof places>} place */
  function drawBars(number, place) {
    const found = /** @type {TraceAnswer} */ (answer);
    const values = found.introduced.map(({ height, values }) => ({ height, value: values[number] }));
    const largest = Math.max(1e-300, ...values.map(({ value }) => Math.abs(value)));
    const zero = beside.bars / 2;
    bars.setAttribute("aria-label", `introduced: ${values.map(({ height, value }) => `${heightName(found, height)} ${signed(value)}`).join(", ")}`);
    bars.replaceChildren(svg("line", { class: "nx-zero", x1: zero, x2: zero, y1: 0, y2: place.height }),
      svg("text", { x: zero, y: place.height + 14, "text-anchor": "middle" }, beside === NARROW ? "enters" : "introduced"),
      ...values.map(({ height, value }) => {
        const length = (Math.abs(value) / largest) * (zero - 4);
        return svg("rect", { class: value > 0 ? "nx-towards" : "nx-against", x: value > 0 ? zero : zero - length, y: place.y(height) - 5, width: length, height: 10 },
          svg("title", {}, `${heightName(found, height)} introduces ${amount(value, found.derivative[number])}`));
      }));
  }

  /** Marks the edge that is looked at and says what it is. */
  function mark() {
    const one = drawn[at];
    chosen.replaceChildren(...(one ? [svg("path", { d: pathOf(one.points), "stroke-width": (one.width + 4).toFixed(1) }), edgePath(one)] : []));
    readout.textContent = one && answer
      ? `${at + 1} of ${drawn.length}: ${said(one.edge, answer, (text) => visibleText(text, 40))}: ${amount(one.value, answer.derivative[Number(classes.value)])}`
      : "point at an edge, or walk them with the arrow keys";
  }

  scroll.addEventListener("keydown", (event) => {
    /** @type {Record<string, number>} */
    const moves = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: drawn.length - 1 };
    if (!(event.key in moves) || drawn.length === 0) return;
    event.preventDefault();
    at = Math.max(0, Math.min(drawn.length - 1, moves[event.key]));
    mark();
    const [x] = pointAt(drawn[at].points, 0.5);
    if (x < scroll.scrollLeft + 20 || x > scroll.scrollLeft + scroll.clientWidth - 20) scroll.scrollLeft = x - scroll.clientWidth / 2;
  });
  const point = (/** @type {PointerEvent} */ event) => {
    const box = picture.getBoundingClientRect();
    const found = nearest(drawn, event.clientX - box.left, event.clientY - box.top);
    if (found < 0 || found === at) return;
    at = found;
    mark();
  };
  scroll.addEventListener("pointermove", point);
  scroll.addEventListener("pointerdown", point);
  classes.addEventListener("change", () => {
    wanted = answer?.classes[Number(classes.value)] ?? "";
    at = -1;
    draw();
  });
  least.addEventListener("input", draw);
  example.addEventListener("change", () => traits.update({ example: Number(example.value) }));

  traits.onChange(scope, ["component", "example", "text"], load);
  focus.changed.on(load);
  examples.changed.on(() => {
    if ([...example.options].some((option) => option.textContent?.endsWith("…"))) writeExamples();
  });
  onWidth(element, scope, (width) => {
    beside = width < NARROW.below ? NARROW : WIDE;
    room = Math.max(150, width - beside.names - beside.bars - 70);
    draw();
  });
  show(null);
  load();
  return element;
}

/** @param {TraceEdge["kind"]} kind */
function kindLine(kind) {
  return svg("svg", { class: "nx-kindline", width: 22, height: 8, "aria-hidden": "true" }, svg("line", { x1: 0, x2: 22, y1: 4, y2: 4, "stroke-width": 4, opacity: Math.max(0.3, OPACITY[kind]) }));
}
