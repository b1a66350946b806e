/** Where the edges of a trace are drawn: tokens across, layers upward, an edge's width by its share of the strongest one. */

/** @import { TraceAnswer, TraceEdge } from "./protocol.js" */

/** @typedef {{ dx: number, dy: number, width: number, height: number, x: (token: number) => number, y: (height: number) => number, end: number }} Places */
/** @typedef {{ edge: TraceEdge, value: number, share: number, width: number, points: [number, number][] }} Drawn points: of a cubic curve */

/** Least shares of the strongest edge that the slider offers. */
export const SHARES = [0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6];
/** More edges at once are neither seen apart nor drawn quickly. */
export const MOST_EDGES = 400;
const WIDEST = 10;
/** What enters stands out from what flows by. */
export const OPACITY = { introduced: 1, "passed on": 0.6, residual: 0.35 };
/** How far kinds between the same two places lie beside each other, in tokens. */
const SIDE = { introduced: 0.14, "passed on": -0.14, residual: 0 };
/** Room on the left for the slanted name of the first token. */
const MARGIN = 34;
/** How much further the logits stand above the last block than a layer above another. */
const ABOVE = 0.4;

/** The height of the logits. @param {TraceAnswer} answer */
export const top = (answer) => 2 * answer.layers + 1;

/** @param {TraceAnswer} answer @param {number} height @param {boolean} [short] */
export function heightName(answer, height, short = false) {
  if (height <= 0) return short ? "emb." : "embeddings";
  if (height >= top(answer)) return "logits";
  return `${height % 2 ? (short ? "att." : "attention") : "MLP"} ${Math.floor((height - 1) / 2)}`;
}

/** The token whose position carries most to the logits: they are drawn above it. @param {TraceAnswer} answer */
export function endOf(answer) {
  const carried = answer.tokens.map(() => 0);
  for (const { from, to, values } of answer.edges) {
    if (to[0] < 0 && from[0] >= 0) carried[from[0]] += values.reduce((sum, value) => sum + Math.abs(value), 0);
  }
  return carried.indexOf(Math.max(...carried));
}

/**
 * @param {TraceAnswer} answer
 * @param {number} room width in pixels there is for the tokens; more of them are scrolled
 * @returns {Places}
 */
export function places(answer, room) {
  const rows = top(answer) + 1 + ABOVE;
  const dx = Math.max(26, Math.min(100, room / (answer.tokens.length + 1)));
  const dy = Math.max(15, Math.min(34, 420 / rows));
  const end = endOf(answer);
  // the side from which a head's own parameters come needs room where the last token carries most
  const width = MARGIN + dx * (Math.max(answer.tokens.length, end + 2) - 0.5);
  const height = dy * (rows + 0.6);
  return {
    dx, dy, width, height, end,
    x: (token) => MARGIN + dx * token,
    y: (at) => height - dy * (1.2 + at + (at >= top(answer) ? ABOVE : 0)),
  };
}

/** The curve of one edge. @param {TraceEdge} edge @param {Places} at @param {TraceAnswer} answer @returns {[number, number][]} */
export function curve({ kind, from, to }, at, answer) {
  const nowhere = from[0] < 0;
  const x0 = at.x(nowhere ? at.end + 1.2 : from[0]);
  const y0 = at.y(nowhere ? top(answer) : from[1]);
  const x1 = at.x(to[0] < 0 ? at.end : to[0]);
  const y1 = at.y(to[1]);
  // level where it starts and ends, and to one side on the way
  const side = (x0 !== x1 || to[0] >= 0 ? (2 / 3) * SIDE[kind] : 0) * at.dx;
  return [[x0, y0], [x0 + side, y0 + (y1 - y0) / 3], [x1 + side, y1 - (y1 - y0) / 3], [x1, y1]];
}

/**
 * The edges of one class that are strong enough, the strongest first.
 * @param {TraceAnswer} answer
 * @param {number} number of the class
 * @param {number} least share of the strongest
 * @param {Set<TraceEdge["kind"]>} kinds
 * @param {Places} at
 * @returns {Drawn[]}
 */
export function edgesOf(answer, number, least, kinds, at) {
  const largest = Math.max(0, ...answer.edges.map(({ values }) => Math.abs(values[number])));
  if (!(largest > 0)) return [];
  return answer.edges
    .map((edge) => ({ edge, value: edge.values[number], share: Math.abs(edge.values[number]) / largest }))
    .filter(({ edge, share }) => share >= least && kinds.has(edge.kind))
    .sort((a, b) => b.share - a.share)
    .slice(0, MOST_EDGES)
    .map((one) => ({ ...one, width: Math.max(0.6, WIDEST * one.share ** 0.6), points: curve(one.edge, at, answer) }));
}

/** @param {[number, number][]} points */
export function pathOf([start, one, two, end]) {
  const said = (/** @type {[number, number]} */ [x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`;
  return `M${said(start)}C${said(one)} ${said(two)} ${said(end)}`;
}

/** A point of the curve, 0 to 1. @param {[number, number][]} points @param {number} s @returns {[number, number]} */
export function pointAt(points, s) {
  const r = 1 - s;
  const parts = [r * r * r, 3 * r * r * s, 3 * r * s * s, s * s * s];
  const along = (/** @type {0 | 1} */ axis) => parts.reduce((sum, part, i) => sum + part * points[i][axis], 0);
  return [along(0), along(1)];
}

/**
 * The edge nearest to a place; its ends do not count, as many edges meet there. -1 where none is near.
 * @param {Drawn[]} drawn
 * @param {number} x
 * @param {number} y
 * @param {number} [within] pixels from an edge's border
 */
export function nearest(drawn, x, y, within = 7) {
  let best = -1;
  let least = within;
  drawn.forEach(({ points, width }, i) => {
    for (let s = 0.15; s < 0.9; s += 0.1) {
      const [px, py] = pointAt(points, s);
      const away = Math.hypot(px - x, py - y) - width / 2;
      if (away < least) {
        least = away;
        best = i;
      }
    }
  });
  return best;
}

/** Where an edge is and what it does, in words. @param {TraceEdge} edge @param {TraceAnswer} answer @param {(text: string) => string} shown */
export function said({ kind, module, layer, from, to }, answer, shown) {
  const token = (/** @type {number} */ number) => shown(answer.tokens[number] ?? "");
  const where = module === "embedding" ? "embeddings" : module === "head" ? "head" : `layer ${layer}, ${module}`;
  const way = from[0] < 0 ? "to the logits" : to[0] < 0 ? `${token(from[0])} → logits` : from[0] === to[0] ? token(from[0]) : `${token(from[0])} → ${token(to[0])}`;
  return `${where}: ${way}, ${kind}`;
}

/** A value of the derivative, and what part of the whole it is. @param {number} value @param {number} whole */
export function amount(value, whole) {
  const share = Math.abs(whole) > 1e-12 ? ` (${Math.round((100 * value) / whole)}\u202f% of the whole)` : "";
  return `${signed(value)}${share}`.replace(/-/g, "\u2212");
}

/** @param {number} value */
export function signed(value) {
  return `${value > 0 ? "+" : ""}${Number(value.toPrecision(3))}`.replace("-", "\u2212");
}
