/** Tells a part its width, once it is in the page and whenever it changes. */

/** @import { Scope } from "./scope.js" */

/**
 * @param {HTMLElement} element
 * @param {Scope} scope
 * @param {(width: number) => void} draw
 */
export function onWidth(element, scope, draw) {
  if (typeof ResizeObserver === "undefined") return;
  let width = -1;
  let frame = 0;
  const observer = new ResizeObserver(() => {
    if (element.clientWidth === width || element.clientWidth === 0) return;
    width = element.clientWidth;
    // drawing changes sizes; doing it in the next frame keeps the browser from reporting a resize loop
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => draw(width));
  });
  observer.observe(element);
  scope.add(() => {
    observer.disconnect();
    cancelAnimationFrame(frame);
  });
}
