/** Geometry of the map of components: where points stand in pixels, what is near what, what a lasso holds. */

/** @typedef {{ x: number, y: number }} Point */
/** @typedef {{ x: number, y: number, width: number, height: number }} Box */

const LEAST_RADIUS = 4;
/** Between two dots, so that both can be seen and hit. */
const GAP = 1.5;
const PASSES = 80;
/** A turn after which directions repeat as late as can be. */
const GOLDEN_ANGLE = 2.399963;

/**
 * Places in the unit square fitted into a box, as large as they get with their proportions.
 * @param {[number, number][]} places
 * @param {Box} box
 * @returns {Point[]}
 */
export function fit(places, box) {
  const [xs, ys] = [places.map(([x]) => x), places.map(([, y]) => y)];
  const [left, top] = [Math.min(...xs), Math.min(...ys)];
  const [wide, high] = [Math.max(...xs) - left, Math.max(...ys) - top];
  const scale = Math.min(wide > 0 ? box.width / wide : Infinity, high > 0 ? box.height / high : Infinity);
  const factor = Number.isFinite(scale) ? scale : 0;
  return places.map(([x, y]) => ({
    x: box.x + box.width / 2 + factor * (x - left - wide / 2),
    y: box.y + box.height / 2 + factor * (y - top - high / 2),
  }));
}

/**
 * Area in proportion to the share, as far as a dot that small could still be seen.
 * @param {number} share
 * @param {number} largest
 * @param {number} most radius of the largest
 */
export function radius(share, largest, most) {
  return Math.max(LEAST_RADIUS, most * Math.sqrt(Math.max(0, share) / Math.max(largest, 1e-12)));
}

/**
 * Dots moved apart until none covers another, as far as the box has room; equal places part in directions of their own.
 * @param {Point[]} points
 * @param {number[]} radii
 * @param {Box} box
 * @returns {Point[]}
 */
export function spread(points, radii, box) {
  const out = points.map(({ x, y }) => ({ x, y }));
  for (let pass = 0; pass < PASSES; pass++) {
    let moved = false;
    for (let i = 0; i < out.length; i++) {
      for (let j = 0; j < i; j++) {
        const need = radii[i] + radii[j] + GAP;
        let [dx, dy] = [out[i].x - out[j].x, out[i].y - out[j].y];
        if (Math.abs(dx) >= need || Math.abs(dy) >= need) continue;
        let apart = Math.hypot(dx, dy);
        if (apart >= need - 1e-6) continue;
        if (apart < 1e-6) [dx, dy, apart] = [Math.cos(GOLDEN_ANGLE * i), Math.sin(GOLDEN_ANGLE * i), 1];
        const push = (need - Math.min(apart, Math.hypot(out[i].x - out[j].x, out[i].y - out[j].y))) / 2;
        out[i].x += (push * dx) / apart;
        out[i].y += (push * dy) / apart;
        out[j].x -= (push * dx) / apart;
        out[j].y -= (push * dy) / apart;
        moved = true;
      }
    }
    out.forEach((point, i) => {
      point.x = Math.min(box.x + box.width - radii[i], Math.max(box.x + radii[i], point.x));
      point.y = Math.min(box.y + box.height - radii[i], Math.max(box.y + radii[i], point.y));
    });
    if (!moved) break;
  }
  return out;
}

/**
 * The dot under or nearest to a place; a finger or a mouse may miss it by a little.
 * @param {Point[]} points
 * @param {number[]} radii
 * @param {Point} at
 * @param {number} reach beyond the dot's edge
 * @returns {number} index, or -1
 */
export function dotAt(points, radii, at, reach) {
  let [best, least] = [-1, reach];
  points.forEach(({ x, y }, i) => {
    const beyond = Math.hypot(x - at.x, y - at.y) - radii[i];
    if (beyond <= least) [best, least] = [i, beyond];
  });
  return best;
}

/**
 * The next dot in a direction: near, and not far off to the side.
 * @param {Point[]} points
 * @param {number} from
 * @param {number} dx
 * @param {number} dy unit vector
 * @param {(index: number) => boolean} [allowed]
 * @returns {number} index; `from` where there is none
 */
export function next(points, from, dx, dy, allowed = () => true) {
  let [best, least] = [from, Infinity];
  points.forEach(({ x, y }, i) => {
    const along = (x - points[from].x) * dx + (y - points[from].y) * dy;
    const aside = Math.abs((x - points[from].x) * dy - (y - points[from].y) * dx);
    const cost = along + 2 * aside;
    if (i !== from && along > 0 && aside <= 2 * along && cost < least && allowed(i)) [best, least] = [i, cost];
  });
  return best;
}

/** Is a point inside a closed line? Even-odd rule. @param {Point[]} line @param {Point} at */
export function inside(line, at) {
  let within = false;
  for (let i = 0, j = line.length - 1; i < line.length; j = i++) {
    const [a, b] = [line[i], line[j]];
    if (a.y > at.y !== b.y > at.y && at.x < ((b.x - a.x) * (at.y - a.y)) / (b.y - a.y) + a.x) within = !within;
  }
  return within;
}

/**
 * Names beside dots, the first ones first, where they cover no dot and no other name.
 * @param {Point[]} points
 * @param {number[]} radii
 * @param {{ index: number, width: number }[]} wanted in the order in which they matter
 * @param {number} height of a line
 * @param {Box} box
 * @returns {{ index: number, x: number, y: number }[]} left end and middle of those that found room
 */
export function placeLabels(points, radii, wanted, height, box) {
  /** @type {Box[]} */
  const taken = [];
  /** @type {{ index: number, x: number, y: number }[]} */
  const placed = [];
  for (const { index, width } of wanted) {
    const { x, y } = points[index];
    const r = radii[index] + 5; // clear of the ring that may be around it
    /** @type {[number, number][]} left end and middle: right, left, below, above */
    const places = [[x + r, y], [x - r - width, y], [x - width / 2, y + r + height / 2], [x - width / 2, y - r - height / 2]];
    for (const [left, middle] of places) {
      const room = { x: left, y: middle - height / 2, width, height };
      if (room.x < box.x || room.y < box.y || room.x + width > box.x + box.width || room.y + height > box.y + box.height) continue;
      if (taken.some((other) => meet(room, other)) || points.some((point, i) => i !== index && touches(room, point, radii[i]))) continue;
      taken.push(room);
      placed.push({ index, x: left, y: middle });
      break;
    }
  }
  return placed;
}

/** @param {Box} a @param {Box} b */
const meet = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;

/** @param {Box} box @param {Point} point @param {number} r */
function touches(box, point, r) {
  const dx = point.x - Math.max(box.x, Math.min(point.x, box.x + box.width));
  const dy = point.y - Math.max(box.y, Math.min(point.y, box.y + box.height));
  return dx * dx + dy * dy < r * r;
}
