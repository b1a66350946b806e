/**
 * The host of a static page: a model like the notebook's, which answers from data that stands in the page. Nothing leaves
 * the page; what the person changes lives as long as the page.
 */

/** @import { ComponentDetail, ExampleDetail, Overview, Request } from "./protocol.js" */
import { responseAt } from "./sweep.js";

/**
 * @typedef {object} PageData
 * @property {Overview} overview
 * @property {string} heat base64 of the uint8 matrix
 * @property {number} component
 * @property {number} strength
 * @property {number[]} selection
 * @property {Record<string, string>} labels
 * @property {"auto" | "light" | "dark"} theme
 * @property {Record<string, ComponentDetail>} details
 * @property {ExampleDetail[]} examples index = row
 */

/** @param {string} text @returns {DataView} */
export function decodeBase64(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return new DataView(bytes.buffer);
}

/**
 * @param {PageData} data
 * @param {Request} request
 * @returns {any} the answer; throws when the page does not have it
 */
export function answer(data, request) {
  if (request.ask === "component") {
    const detail = data.details[String(request.component)];
    if (!detail) throw new Error(`this page was saved without the details of component ${request.component}; run the notebook to see them.`);
    return detail;
  }
  if (request.ask === "examples") {
    return request.rows.map((row) => data.examples[row]).filter(Boolean);
  }
  if (request.ask === "strength") {
    const sweep = data.details[String(request.component)]?.sweep;
    if (!sweep) throw new Error(`this page was saved without strengths for component ${request.component}.`);
    const { kl_top, kl_baseline, probabilities } = responseAt(sweep, request.strength);
    return { strength: request.strength, kl_top, kl_baseline, probabilities };
  }
  return null;
}

/**
 * @param {PageData} data
 * @returns {any} get, set, on, off, save_changes and send, as far as the explorer uses them
 */
export function createHost(data) {
  const { details: _details, examples: _examples, heat, overview, ...traits } = data;
  /** @type {Record<string, any>} a page has no model to run, whatever was said when it was saved */
  const state = { ...traits, heat: decodeBase64(heat), overview: { ...overview, live: false } };
  /** @type {Map<string, Set<(...args: any[]) => void>>} */
  const listeners = new Map();
  /** @param {string} name @param {...any} args */
  const tell = (name, ...args) => {
    for (const listener of [...(listeners.get(name) ?? [])]) listener(...args);
  };
  return {
    /** @param {string} name */
    get: (name) => state[name],
    /** @param {string} name @param {any} value */
    set(name, value) {
      if (JSON.stringify(state[name]) === JSON.stringify(value)) return;
      state[name] = value;
      tell(`change:${name}`);
    },
    save_changes() {},
    /** @param {string} name @param {(...args: any[]) => void} listener */
    on(name, listener) {
      if (!listeners.has(name)) listeners.set(name, new Set());
      listeners.get(name)?.add(listener);
    },
    /** @param {string} name @param {(...args: any[]) => void} listener */
    off(name, listener) {
      listeners.get(name)?.delete(listener);
    },
    /** @param {Request & { id: string }} request */
    send(request) {
      if (request.ask === "cancel") return;
      // later, as a kernel would: nobody may rely on an answer inside send
      queueMicrotask(() => {
        try {
          tell("msg:custom", { id: request.id, answer: answer(data, request) }, []);
        } catch (error) {
          tell("msg:custom", { id: request.id, error: error instanceof Error ? error.message : String(error) }, []);
        }
      });
    },
  };
}
