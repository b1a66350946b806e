/** The comparison's entry: two decompositions, matched component to component. What Python sends stands in pairs.js. */

/** @import { AnyModel } from "@anywidget/types" */
/** @import { Comparison, Example, Pair } from "./pairs.js" */
/** @import { Requests } from "./requests.js" */
/** @import { Scope } from "./scope.js" */
/** @import { Signal } from "./signal.js" */
/** @import { Theme } from "./theme.js" */
import { button, focused, h, scrollWithin } from "./dom.js";
import { line } from "./figures.js";
import { PAIR_SORTS, arrangePairs, matrixOrder, mostAlike, parsePairSort, pooled, ranks } from "./pairs.js";
import { coefficient, percent } from "./numbers.js";
import { Cancelled, createRequests } from "./requests.js";
import { onWidth } from "./resize.js";
import { createScope } from "./scope.js";
import { createSignal } from "./signal.js";
import { statusPlace } from "./status_line.js";
import { createTheme } from "./theme.js";
import { createTraits } from "./traits.js";

/** @typedef {"a" | "b"} SideName */
/** @type {SideName[]} */
const SIDES = ["a", "b"];
const LONGEST_TEXT = 2000;
const LARGEST_CELL = 18;

/** @param {{ model: AnyModel<any>, el: HTMLElement }} place */
function render({ model, el }) {
  const scope = createScope();
  const root = h("div", { class: "npeff-explorer nx-compare", "data-lm-suppress-shortcuts": "true" });
  for (const type of ["keydown", "keypress", "keyup"]) root.addEventListener(type, (event) => event.stopPropagation());
  const traits = createTraits(model);
  let built = scope.child();
  const build = () => {
    built.dispose();
    built = scope.child();
    const theme = createTheme(root, traits, built);
    /** @type {Comparison} */
    const data = model.get("data");
    if (!data?.pairs) root.replaceChildren(h("p", { class: "nx-empty" }, "Nothing to show yet: this comparison has no pairs."));
    else root.replaceChildren(...comparison(model, data, theme, built));
    onWidth(root, built, theme.refresh);
    theme.refresh();
  };
  model.on("change:data", build);
  scope.add(() => model.off("change:data", build));
  build();
  el.append(root);
  return () => {
    scope.dispose();
    root.remove();
  };
}

/**
 * @param {AnyModel<any>} model
 * @param {Comparison} data
 * @param {Theme} theme
 * @param {Scope} scope
 */
function comparison(model, data, theme, scope) {
  const requests = createRequests(model, scope);
  const moved = createSignal();
  /** @param {SideName} side @returns {number} */
  const chosen = (side) => model.get(`${side}_component`) ?? 0;
  /** @param {Record<string, any>} values */
  const update = (values) => {
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
  };
  /** @param {number} a @param {number} b */
  const choose = (a, b) => update({ a_component: a, b_component: b });
  /** @param {string[]} names @param {() => void} listener */
  const onChange = (names, listener) => {
    for (const name of names) {
      model.on(`change:${name}`, listener);
      scope.add(() => model.off(`change:${name}`, listener));
    }
  };
  // two traits change together; what follows them is drawn once
  let waiting = false;
  onChange(["a_component", "b_component"], () => {
    if (waiting) return;
    waiting = true;
    queueMicrotask(() => {
      waiting = false;
      moved.emit();
    });
  });

  /** @param {SideName} side @param {number} number */
  const named = (side, number) => `${number} ${line(data.sides[side].components[number]?.label ?? "", 60)}`;
  const nColumns = data.sides.b.components.length;
  const view = model.get("matrix");
  const matrix = new Uint8Array(view ? view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength) : data.sides.a.components.length * nColumns);
  /** @param {number} a @param {number} b */
  const agreement = (a, b) => data.pairs.find((pair) => pair.a === a && pair.b === b)?.agreement ?? matrix[a * nColumns + b] / 255;

  const header = h("header", { class: "nx-top" }, h("h2", {}, data.title), h("span", { class: "nx-dim" }, data.headline));
  const warning = data.trouble ? h("p", { class: "nx-warning", role: "note" }, h("b", {}, "Compared by coefficients alone. "), line(data.trouble)) : null;
  /** @type {Context} */
  const context = { model, data, theme, scope, requests, moved, onChange, chosen, choose, update, named, matrix, nColumns, agreement };
  return [header, ...(warning ? [warning] : []), h("div", { class: "nx-comparison" }, pairList(context), examplesOfBoth(context), matrixPart(context))];
}

/**
 * @typedef {object} Context what every part gets
 * @property {AnyModel<any>} model
 * @property {Comparison} data
 * @property {Theme} theme
 * @property {Scope} scope
 * @property {Requests} requests
 * @property {Signal} moved other components are looked at
 * @property {(names: string[], listener: () => void) => void} onChange
 * @property {(side: SideName) => number} chosen
 * @property {(a: number, b: number) => void} choose
 * @property {(values: Record<string, any>) => void} update
 * @property {(side: SideName, number: number) => string} named
 * @property {Uint8Array} matrix agreement of a by b, 255 is 1
 * @property {number} nColumns of the matrix
 * @property {(a: number, b: number) => number} agreement
 */

/** All pairs by agreement, then what has no partner. @param {Context} context */
function pairList({ model, data, scope, moved, onChange, chosen, choose, update, named, matrix, nColumns, agreement }) {
  const list = h("ul", { class: "nx-pairlist", role: "listbox", "aria-label": "matched components" });
  const sort = h("select", { "aria-label": "sort pairs", title: "sort by" });
  for (const [key, name] of PAIR_SORTS) if (!data.trouble || key !== "direction") sort.append(h("option", { value: key }, name));
  const current = () => parsePairSort(model.get("sort") ?? "");
  sort.addEventListener("change", () => {
    const first = PAIR_SORTS.find(([key]) => key === sort.value)?.[2];
    update({ sort: `${first ? "-" : ""}${sort.value}` });
  });
  const direction = button("reverse order", "↓", () => {
    const { key, falling } = current();
    update({ sort: `${falling ? "" : "-"}${key}` });
  }, { class: "nx-icon" });

  /** @type {{ option: HTMLElement, a: number, b: number }[]} */
  let rows = [];
  let active = 0;

  /** @param {Pair} pair */
  function pairRow(pair) {
    const told = [`agreement ${coefficient(pair.agreement)}`, pair.direction === null ? "" : `direction ${coefficient(pair.direction)}`, `coefficients ${coefficient(pair.coefficients)}`].filter(Boolean);
    const bar = h("span", { class: `nx-bar ${pair.agreement >= data.same ? "" : "nx-hot"}`, "aria-hidden": "true" }, h("i"));
    /** @type {HTMLElement} */ (bar.firstChild).style.width = `${100 * pair.agreement}%`;
    const option = h("li", { class: "nx-pairoption", role: "option", tabindex: -1, "aria-label": `${named("a", pair.a)}, ${named("b", pair.b)}, ${coefficient(pair.agreement)}, ${told.join(", ")}`, title: told.join(" · ") },
      h("span", { class: "nx-label" }, named("a", pair.a)), " ", h("span", { class: "nx-label" }, named("b", pair.b)), " ", bar, h("span", { class: "nx-value" }, coefficient(pair.agreement)));
    return { option, a: pair.a, b: pair.b };
  }

  /** @param {SideName} side @param {number} number */
  function aloneRow(side, number) {
    const other = mostAlike(matrix, nColumns, side, number);
    const [a, b] = side === "a" ? [number, other] : [other, number];
    const told = `most like ${side === "a" ? named("b", b) : named("a", a)} (${coefficient(agreement(a, b))})`;
    const empty = h("span", { class: "nx-dim" }, "no partner");
    const name = h("span", { class: "nx-label" }, named(side, number));
    const option = h("li", { class: "nx-pairoption nx-alone", role: "option", tabindex: -1, "aria-label": `${side === "a" ? `${named(side, number)}, no partner` : `no partner, ${named(side, number)}`}, ${told}`, title: told },
      ...(side === "a" ? [name, " ", empty] : [empty, " ", name]), h("span"), h("span", { class: "nx-value", "aria-hidden": "true" }, "–"));
    return { option, a, b };
  }

  function arrange() {
    const held = focused(list) !== null;
    const { key, falling } = current();
    rows = [...arrangePairs(data, model.get("sort") ?? "").map(pairRow), ...data.alone.a.map((number) => aloneRow("a", number)), ...data.alone.b.map((number) => aloneRow("b", number))];
    rows.forEach(({ option, a, b }, i) => option.addEventListener("click", () => {
      moveTo(i);
      choose(a, b);
    }));
    list.replaceChildren(...rows.map(({ option }) => option));
    sort.value = key;
    direction.textContent = falling ? "↓" : "↑";
    direction.setAttribute("aria-label", `reverse order, now ${falling ? "falling" : "rising"}`);
    showChosen();
    if (held) rows[active]?.option.focus({ preventScroll: true });
  }

  function showChosen() {
    let at = -1;
    rows.forEach(({ option, a, b }, i) => {
      const now = a === chosen("a") && b === chosen("b");
      option.setAttribute("aria-selected", String(now && at < 0));
      if (now && at < 0) at = i;
      option.tabIndex = -1;
    });
    if (at >= 0) active = at;
    const row = rows[Math.min(active, rows.length - 1)]?.option;
    if (!row) return;
    row.tabIndex = 0;
    if (at >= 0) scrollWithin(list, row);
  }

  /** @param {number} i */
  function moveTo(i) {
    if (rows[active]) rows[active].option.tabIndex = -1;
    active = i;
    rows[i].option.tabIndex = 0;
    rows[i].option.focus({ preventScroll: true });
    scrollWithin(list, rows[i].option);
  }

  list.addEventListener("keydown", (event) => {
    /** @type {Record<string, number>} */
    const moves = { ArrowDown: active + 1, ArrowUp: active - 1, Home: 0, End: rows.length - 1, PageDown: active + 10, PageUp: active - 10 };
    if (rows.length === 0) return;
    if (event.key in moves) moveTo(Math.max(0, Math.min(rows.length - 1, moves[event.key])));
    else if (event.key === "Enter" || event.key === " ") choose(rows[active].a, rows[active].b);
    else return;
    event.preventDefault();
  });

  moved.on(showChosen);
  onChange(["sort"], arrange);
  arrange();
  onWidth(list, scope, showChosen);
  return h("section", { class: "nx-pairsleft", "aria-label": "pairs" },
    h("div", { class: "nx-head" }, h("h3", {}, "Pairs"), h("span", { class: "nx-dim" }, String(data.pairs.length)), h("span", { class: "nx-spring" }), sort, direction),
    h("div", { class: "nx-pairheads nx-dim", "aria-hidden": "true" }, h("span", {}, "a"), h("span", {}, "b")),
    list,
    h("p", { class: "nx-legend" }, data.trouble ? "agreement: correlation of the coefficients over the same examples"
      : "agreement: |cos| of the directions × correlation of the coefficients", ` · blue from ${data.same}`));
}

/** The top examples of the two that are looked at. @param {Context} context */
function examplesOfBoth({ data, scope, requests, moved, chosen, named, agreement }) {
  /** @type {Record<SideName, Map<number, Example[]>>} */
  const known = { a: new Map(), b: new Map() };
  const title = h("h3", { class: "nx-title" });
  const sentence = h("p", { class: "nx-sentence", role: "status" });
  const lists = Object.fromEntries(SIDES.map((side) => {
    const head = h("h3");
    const trouble = statusPlace();
    const list = h("ol", { class: "nx-sidelist", tabindex: 0 });
    return [side, { head, trouble, list, element: h("div", { class: "nx-side" }, head, trouble.element, list) }];
  }));
  scope.add(() => { for (const side of SIDES) known[side].clear(); });

  /** @param {SideName} side */
  function want(side) {
    const number = chosen(side);
    const { trouble } = lists[side];
    if (known[side].has(number)) return trouble.clear();
    const pending = requests.ask(/** @type {any} */ ({ ask: "top", side, component: number }));
    trouble.waiting(`component ${number} of ${side}`, null, () => pending.cancel());
    pending.promise.then(
      (/** @type {Example[]} */ rows) => {
        known[side].set(number, rows);
        if (chosen(side) === number) show();
      },
      (error) => {
        if (chosen(side) !== number) return;
        if (error instanceof Cancelled) trouble.cancelled(`component ${number} of ${side}`, () => want(side));
        else trouble.failed(`component ${number} of ${side}`, error.message, () => want(side));
      },
    );
  }

  /** @param {SideName} side @param {Example[]} rows @param {Map<number, number>} elsewhere */
  function fill(side, rows, elsewhere) {
    const other = side === "a" ? "b" : "a";
    lists[side].list.replaceChildren(...rows.map(({ row, coefficient: value, text, gold, prediction }) => {
      const rank = elsewhere.get(row);
      const right = gold === null || prediction === null ? null : gold === prediction;
      return h("li", { class: rank ? "nx-shared" : null },
        h("div", { class: "nx-meta" }, h("span", {}, coefficient(value)),
          gold === null ? null : h("span", { class: "nx-chip" }, `gold ${line(gold, 40)}`),
          prediction === null ? null : h("span", { class: `nx-chip ${right === null ? "" : right ? "nx-good" : "nx-bad"}` }, `${right === null ? "" : right ? "✓ " : "✗ "}predicts ${line(prediction, 40)}`),
          rank ? h("span", { class: "nx-chip nx-also" }, `= no. ${rank} of ${other}`) : null),
        h("div", { class: "nx-words" }, line(text, LONGEST_TEXT)));
    }));
  }

  function show() {
    const [a, b] = [chosen("a"), chosen("b")];
    const pair = data.pairs.find((one) => one.a === a && one.b === b);
    const tops = { a: known.a.get(a), b: known.b.get(b) };
    title.textContent = `a ${named("a", a)} and b ${named("b", b)}`;
    const shared = tops.a && tops.b ? tops.a.filter(({ row }) => ranks(tops.b ?? []).has(row)).length : null;
    sentence.textContent = [
      pair ? "matched" : "not matched to each other", `agreement ${coefficient(agreement(a, b))}`,
      pair && pair.direction !== null ? `direction ${coefficient(pair.direction)}` : "", pair ? `coefficients ${coefficient(pair.coefficients)}` : "",
      shared === null ? "" : `${shared} of ${Math.max(tops.a?.length ?? 0, tops.b?.length ?? 0)} top examples shared`,
    ].filter(Boolean).join(" · ");
    for (const side of SIDES) {
      const number = chosen(side);
      const other = side === "a" ? tops.b : tops.a;
      const about = data.sides[side].components[number];
      lists[side].head.textContent = `${side}: ${named(side, number)} · ${percent(about?.share ?? 0, 1)} of what it explains`;
      lists[side].list.setAttribute("aria-label", `top examples of component ${number} of ${side}`);
      if (tops[side]) lists[side].trouble.clear();
      fill(side, tops[side] ?? [], ranks(other ?? []));
    }
  }

  const both = () => {
    show();
    for (const side of SIDES) want(side);
  };
  moved.on(both);
  both();
  return h("section", { class: "nx-middle", "aria-label": "top examples of both" }, title, sentence, h("div", { class: "nx-sides" }, ...SIDES.map((side) => lists[side].element)));
}

/** Every component of a by every one of b. @param {Context} context */
function matrixPart({ model, data, theme, scope, moved, onChange, chosen, choose, named, matrix, nColumns, agreement }) {
  const canvas = h("canvas");
  const readout = h("p", { class: "nx-readout", role: "status" });
  const place = h("div", { class: "nx-matrix", role: "application", tabindex: 0, "aria-label": "agreement of all components of a by all of b", "aria-roledescription": "matrix" }, canvas);
  let order = matrixOrder(arrangePairs(data, model.get("sort") ?? ""), data.alone);
  let [wide, high] = [0, 0];
  /** Where the keyboard is, as places in the drawn order. @type {[number, number]} */
  let cursor = [0, 0];

  function draw() {
    const [nRows, nShown] = [order.rows.length, order.columns.length];
    const width = place.clientWidth;
    const pen = canvas.getContext("2d");
    if (width === 0 || !pen || nRows === 0 || nShown === 0) return;
    const cell = Math.min(LARGEST_CELL, width / nShown);
    const ratio = window.devicePixelRatio || 1;
    [wide, high] = [cell * nShown, Math.min(cell * nRows, 1.6 * width)];
    canvas.width = Math.round(wide * ratio);
    canvas.height = Math.round(high * ratio);
    canvas.style.width = `${wide}px`;
    canvas.style.height = `${high}px`;
    const [cellsWide, cellsHigh] = [Math.min(nShown, canvas.width), Math.min(nRows, canvas.height)];
    const values = pooled(matrix, nColumns, order.rows, order.columns, cellsHigh, cellsWide);
    const { paper, cold, hot, ink } = theme.colours;
    pen.fillStyle = `rgb(${paper})`;
    pen.fillRect(0, 0, canvas.width, canvas.height);
    const [sx, sy] = [canvas.width / cellsWide, canvas.height / cellsHigh];
    const gap = sx > 5 ? Math.round(ratio) : 0;
    values.forEach((value, at) => {
      const [r, c] = [Math.floor(at / cellsWide), at % cellsWide];
      pen.fillStyle = `rgba(${cold}, ${0.06 + (0.94 * value) / 255})`;
      const [x, y] = [Math.round(c * sx), Math.round(r * sy)];
      pen.fillRect(x, y, Math.round((c + 1) * sx) - x - gap, Math.round((r + 1) * sy) - y - gap);
    });
    /** @param {[number, number]} where @param {string} colour @param {number} thick */
    const frame = ([r, c], colour, thick) => {
      pen.strokeStyle = colour;
      pen.lineWidth = thick * ratio;
      const [w, t] = [Math.max(4 * ratio, canvas.width / nShown), Math.max(4 * ratio, canvas.height / nRows)];
      pen.strokeRect((c * canvas.width) / nShown - ratio / 2, (r * canvas.height) / nRows - ratio / 2, w, t);
    };
    frame([order.rows.indexOf(chosen("a")), order.columns.indexOf(chosen("b"))], `rgb(${hot})`, 2);
    if (place.matches(":focus")) frame(cursor, `rgb(${ink})`, 1);
  }

  /** @param {[number, number]} where @returns {[number, number]} component of a, of b */
  const at = ([r, c]) => [order.rows[r], order.columns[c]];
  /** @param {[number, number]} where */
  function tell(where) {
    const [a, b] = at(where);
    const matched = data.pairs.some((pair) => pair.a === a && pair.b === b);
    readout.textContent = `a ${named("a", a)} × b ${named("b", b)}: ${coefficient(agreement(a, b))}${matched ? ", matched" : ""}`;
  }
  /** @param {MouseEvent} event @returns {[number, number]} */
  function cellUnder(event) {
    const { left, top } = canvas.getBoundingClientRect();
    /** @param {number} value @param {number} n */
    const clamp = (value, n) => Math.max(0, Math.min(n - 1, Math.floor(value)));
    return [clamp(((event.clientY - top) / high) * order.rows.length, order.rows.length), clamp(((event.clientX - left) / wide) * order.columns.length, order.columns.length)];
  }
  canvas.addEventListener("pointermove", (event) => { if (wide) tell(cellUnder(event)); });
  canvas.addEventListener("pointerleave", () => tell(cursor));
  canvas.addEventListener("click", (event) => {
    if (!wide) return;
    cursor = cellUnder(event);
    choose(...at(cursor));
  });
  place.addEventListener("keydown", (event) => {
    const [r, c] = cursor;
    const [last, end] = [order.rows.length - 1, order.columns.length - 1];
    /** @type {Record<string, [number, number]>} */
    const moves = { ArrowDown: [Math.min(last, r + 1), c], ArrowUp: [Math.max(0, r - 1), c], ArrowRight: [r, Math.min(end, c + 1)], ArrowLeft: [r, Math.max(0, c - 1)], Home: [0, 0], End: [last, end] };
    if (event.key in moves) {
      cursor = moves[event.key];
      tell(cursor);
      draw();
    } else if (event.key === "Enter" || event.key === " ") choose(...at(cursor));
    else return;
    event.preventDefault();
  });
  for (const type of ["focus", "blur"]) place.addEventListener(type, draw);

  function follow() {
    const [r, c] = [order.rows.indexOf(chosen("a")), order.columns.indexOf(chosen("b"))];
    if (r >= 0 && c >= 0) cursor = [r, c];
    tell(cursor);
    draw();
  }
  moved.on(follow);
  theme.changed.on(draw);
  onChange(["sort"], () => {
    order = matrixOrder(arrangePairs(data, model.get("sort") ?? ""), data.alone);
    follow();
  });
  onWidth(place, scope, draw);
  if (order.rows.length && order.columns.length) follow();
  return h("section", { class: "nx-matrixpart", "aria-label": "matrix" }, h("div", { class: "nx-head" }, h("h3", {}, "All by all"), h("span", { class: "nx-dim" }, "down: a, across: b")), place, readout,
    h("p", { class: "nx-legend" }, "pairs on the diagonal, in the order of the list · click or arrows and Enter to look at any two"));
}

export default { render };
