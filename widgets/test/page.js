// A browser page without a browser: jsdom, a model that records what it is told, and counters for listeners.
import { JSDOM } from "jsdom";
import { inventData } from "../dev/invent.mjs";

/** A pen that draws nothing but says how often the heat was drawn. */
const pen = () => ({
  drawn: 0, createImageData: (w, h) => ({ data: new Uint8ClampedArray(4 * w * h) }), putImageData() {}, drawImage() { this.drawn += 1; },
  setTransform() {}, clearRect() {}, fillRect() {}, strokeRect() {}, beginPath() {}, moveTo() {}, lineTo() {}, fill() {},
});

/** Puts a fresh page into the globals; returns what the tests look at. */
export function openPage() {
  const { window } = new JSDOM("<!doctype html><html><body></body></html>", { pretendToBeVisual: true });
  // jsdom's selector engine starts on first use and listens to the document itself; that is not ours to count
  window.document.querySelector("p");
  window.getComputedStyle(window.document.body);
  const counts = { listeners: 0, observers: 0 };
  for (const target of [window, window.document]) {
    const { addEventListener, removeEventListener } = target;
    target.addEventListener = (...args) => { counts.listeners += 1; addEventListener.apply(target, args); };
    target.removeEventListener = (...args) => { counts.listeners -= 1; removeEventListener.apply(target, args); };
  }
  class ResizeObserver {
    constructor(callback) { this.callback = callback; }
    observe() { counts.observers += 1; this.callback(); }
    disconnect() { counts.observers -= 1; }
  }
  class MutationObserver extends window.MutationObserver {
    constructor(callback) { super(callback); counts.observers += 1; }
    disconnect() { counts.observers -= 1; super.disconnect(); }
  }
  window.HTMLCanvasElement.prototype.getContext = function () { return (this.pen ??= pen()); };
  Object.assign(globalThis, {
    window, document: window.document, HTMLElement: window.HTMLElement, Node: window.Node, ResizeObserver, MutationObserver,
    getComputedStyle: window.getComputedStyle.bind(window), getSelection: window.getSelection.bind(window),
    requestAnimationFrame: window.requestAnimationFrame.bind(window), cancelAnimationFrame: window.cancelAnimationFrame.bind(window),
  });
  return { window, document: window.document, counts };
}

/** Like anywidget's model: `set` tells at once, and only when the value is another one. */
export function fakeModel(state) {
  const listeners = new Map();
  const model = {
    sent: [], saved: 0,
    get: (name) => state[name],
    set(name, value) {
      if (JSON.stringify(state[name]) === JSON.stringify(value)) return;
      state[name] = value;
      model.tell(`change:${name}`);
    },
    save_changes() { model.saved += 1; },
    on(name, listener) { listeners.set(name, [...(listeners.get(name) ?? []), listener]); },
    off(name, listener) { listeners.set(name, (listeners.get(name) ?? []).filter((other) => other !== listener)); },
    send(message) { model.sent.push(message); },
    tell(name, ...args) { for (const listener of [...(listeners.get(name) ?? [])]) listener(...args); },
    listening: () => [...listeners.values()].reduce((sum, all) => sum + all.length, 0),
    asked: (ask) => model.sent.filter((message) => message.ask === ask),
    /** Answers the newest request of a kind. */
    async reply(ask, reply, buffers = []) {
      const { id } = model.asked(ask).at(-1);
      model.tell("msg:custom", { id, ...reply }, buffers);
      await settle();
    },
  };
  return model;
}

export const settle = () => new Promise((resolve) => setTimeout(resolve, 0));

/** Data for a small live widget, and what its kernel would answer from. */
export function smallData(components = 6, examples = 40) {
  const data = structuredClone(inventData(components, examples));
  data.overview.live = true;
  const { overview, panels, state, labels, notes, stars } = data;
  return { data, traits: { overview, panels, labels, notes, stars, ...state }, details: data.details, examples: data.examples };
}
