/** The slider of one component's strength, with the band in which a preview holds, and the box for exact numbers. */

/** @import { Range } from "./slide.js" */
import { h } from "./dom.js";
import { decimals } from "./numbers.js";
import { keyed, toPlace, toStrength, written } from "./slide.js";

/** @typedef {ReturnType<typeof strengthSlider>} StrengthSlider */

/**
 * @param {Range} range
 * @param {string} name what a screen reader says
 * @param {{ drag: (strength: number) => void, commit: (strength: number) => void }} on
 */
export function strengthSlider(range, name, on) {
  const { low, high, step } = range;
  // its own value is a place; what it means is said by aria-valuetext
  const slider = h("input", { type: "range", "aria-label": name, min: toPlace(low, range), max: toPlace(high, range), step: "any" });
  const box = h("input", { type: "number", class: "nx-box", "aria-label": `${name} value`, min: low, max: high, step });
  const zero = h("span", { class: "nx-zero", "aria-hidden": "true" });
  const band = h("span", { class: "nx-band", hidden: true });
  /** From 0 to 1 along the track. @param {number} strength */
  const along = (strength) => (toPlace(strength, range) - toPlace(low, range)) / (toPlace(high, range) - toPlace(low, range) || 1);
  zero.style.setProperty("--at", String(along(0)));

  let value = 0;
  /** Moved by keys and not committed yet. */
  let keys = false;
  slider.addEventListener("input", () => on.drag(toStrength(Number(slider.value), range)));
  slider.addEventListener("change", () => on.commit(toStrength(Number(slider.value), range)));
  slider.addEventListener("keydown", (event) => {
    const next = keyed(event.key, value, range);
    if (next === null || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys = true;
    on.drag(next);
  });
  const release = () => {
    if (!keys) return;
    keys = false;
    on.commit(value);
  };
  // a key that is held down sends many strengths; the model is run at the last
  slider.addEventListener("keyup", release);
  slider.addEventListener("blur", release);

  /** While someone types, nothing may overwrite the box. */
  let typing = false;
  const commitBox = () => {
    typing = false;
    const typed = Number(box.value);
    // an empty or impossible entry falls back to the strength that holds
    if (box.value.trim() === "" || !Number.isFinite(typed)) return writeBox();
    on.commit(Math.max(low, Math.min(high, typed)));
    writeBox();
  };
  const writeBox = () => {
    if (!typing) box.value = Math.abs(value * 10 ** decimals(step)) % 1 > 1e-6 ? String(value) : value.toFixed(decimals(step));
  };
  box.addEventListener("input", () => (typing = true));
  box.addEventListener("change", commitBox);
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter") commitBox();
    if (event.key === "Escape") {
      typing = false;
      writeBox();
    }
  });

  return {
    element: h("span", { class: "nx-track" }, band, slider, zero),
    box,
    /**
     * @param {number} strength
     * @param {boolean} disabled
     * @param {[number, number] | null} trusted
     */
    show(strength, disabled, trusted) {
      value = strength;
      slider.value = String(toPlace(strength, range));
      slider.setAttribute("aria-valuetext", written(strength, range));
      slider.style.setProperty("--from", `${100 * Math.min(along(0), along(strength))}%`);
      slider.style.setProperty("--to", `${100 * Math.max(along(0), along(strength))}%`);
      writeBox();
      for (const control of [slider, box]) control.disabled = disabled;
      band.hidden = !trusted;
      if (trusted) {
        band.style.setProperty("--from", String(along(trusted[0])));
        band.style.setProperty("--to", String(along(trusted[1])));
        band.title = `from ${written(trusted[0], range)} to ${written(trusted[1], range)} the first-order preview is off by at most a tenth of the true KL`;
      }
    },
  };
}
