/** Mouse, fingers and wheel over the heatmap: what they mean as pointing, picking, moving and zooming. */

/** Zoom of a wheel's pixel, of which a notch has about 100, and of a pinch on a touch pad, which comes in small numbers. */
const WHEEL = 0.002;
const PINCH = 0.01;
/** Pixels by which a press may slip and still be a click. */
const SLIP = 4;
/** Fingers closer than this say nothing about a zoom. */
const CLOSE = 8;
/** Pixels that a line or a page of a wheel stands for, by WheelEvent.deltaMode. */
const DELTA = [1, 16, 400];

/** @typedef {{ clientX: number, clientY: number }} Place */

/**
 * @typedef {object} Meanings
 * @property {(place: Place | null) => void} point
 * @property {() => void} take picks what was pointed at
 * @property {(by: number) => void} pan pixels to the right
 * @property {(by: number) => void} scroll pixels down, where rows can be scrolled
 * @property {(factor: number, about: Place) => void} zoom below 1 zooms in
 * @property {(factor: number, about: Place) => void} grow rows; above 1 makes them taller
 * @property {() => string} state another one when something has moved
 */

/** Pixels to the right and down. @param {WheelEvent} event @returns {[number, number]} */
export function pixelsOf({ deltaX, deltaY, deltaMode }) {
  const unit = DELTA[deltaMode] ?? 1;
  return [deltaX * unit, deltaY * unit];
}

/** @param {HTMLCanvasElement} canvas @param {Meanings} meanings */
export function hearGestures(canvas, { point, take, pan, scroll, zoom, grow, state }) {
  /** @type {Map<number, { x: number, y: number }>} fingers, or the mouse with its button down */
  const pressed = new Map();
  let travelled = 0;
  let entered = { x: 0, y: 0 };
  let armed = false;

  canvas.addEventListener("pointerenter", ({ clientX, clientY }) => {
    entered = { x: clientX, y: clientY };
    armed = false;
  });
  canvas.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse" && event.button !== 0) return;
    if (pressed.size === 0) travelled = 0;
    pressed.set(event.pointerId, { x: event.clientX, y: event.clientY });
    armed = true;
  });
  canvas.addEventListener("pointermove", (event) => {
    armed ||= Math.abs(event.clientX - entered.x) + Math.abs(event.clientY - entered.y) > 1;
    if (event.pointerType === "mouse" && event.buttons === 0) pressed.clear(); // let go outside
    const last = pressed.get(event.pointerId);
    if (!last) {
      point(event);
      return;
    }
    const [dx, dy] = [event.clientX - last.x, event.clientY - last.y];
    pressed.set(event.pointerId, { x: event.clientX, y: event.clientY });
    travelled += Math.abs(dx) + Math.abs(dy);
    if (travelled <= SLIP) return;
    canvas.setPointerCapture?.(event.pointerId); // only now: a captured press would click on what captured it
    const other = [...pressed].find(([id]) => id !== event.pointerId)?.[1];
    if (!other) {
      pan(-dx);
      scroll(-dy);
      return;
    }
    const [before, after] = [Math.abs(last.x - other.x), Math.abs(event.clientX - other.x)];
    pan(-dx / 2);
    if (before > CLOSE && after > CLOSE) zoom(before / after, { clientX: (event.clientX + other.x) / 2, clientY: event.clientY });
  });
  for (const type of /** @type {const} */ (["pointerup", "pointercancel"])) canvas.addEventListener(type, ({ pointerId }) => pressed.delete(pointerId));
  canvas.addEventListener("pointerleave", ({ pointerId }) => {
    if (!pressed.has(pointerId)) point(null);
  });
  canvas.addEventListener("click", (event) => {
    const dragged = travelled > SLIP;
    travelled = 0;
    if (dragged) return;
    point(event);
    take();
  });
  canvas.addEventListener("wheel", (event) => {
    // a page that scrolls under a resting pointer goes on scrolling: the wheel is ours once the pointer has moved here
    if (!armed && !event.ctrlKey) return;
    const [dx, dy] = pixelsOf(event);
    const before = state();
    if (event.altKey) grow(Math.exp(-dy * WHEEL), event);
    else if (event.shiftKey || Math.abs(dx) > Math.abs(dy)) pan(dx || dy);
    else zoom(Math.exp(dy * (event.ctrlKey ? PINCH : WHEEL)), event);
    // at the end of the way out the page may scroll on
    if (event.ctrlKey || before !== state()) event.preventDefault();
    point(event);
  }, { passive: false });
}
