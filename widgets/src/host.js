/**
 * The host of a static page: a model like the notebook's, which answers from data that stands in the page. Nothing leaves
 * the page; what the person changes lives as long as the page, or until they save a copy.
 */

/** @import { ComponentDetail, ExampleDetail, Overview, PanelName, Request } from "./protocol.js" */
/** @import { SavedHeat } from "./heat_answer.js" */
import { createHeatAnswers } from "./heat_answer.js";
import { entryOf, find } from "./search.js";

/**
 * @typedef {object} PageData
 * @property {Overview} overview
 * @property {PanelName[]} panels
 * @property {Record<string, any>} state the other traits
 * @property {Record<string, string>} labels
 * @property {Record<string, string>} notes
 * @property {number[]} stars
 * @property {ComponentDetail[]} details
 * @property {[number, number][][][]} bands component -> band -> some of its examples, each with its coefficient
 * @property {Record<string, ExampleDetail>} examples by row: all, or of very many those that some component shows
 * @property {SavedHeat} heat
 */

/** What the person may change in a page, and what a saved copy keeps. */
export const KEPT = /** @type {const} */ (["labels", "notes", "stars"]);

/** @param {PageData} data */
export function createAnswers(data) {
  const heat = createHeatAnswers(data.heat, data.overview, (row) => data.examples[String(row)]);
  const entries = data.overview.components.map((summary) => entryOf(summary, data.details[summary.component]));

  /** @param {number} component */
  function detail(component) {
    const found = data.details[component];
    if (!found) throw new Error(`component ${component} does not exist: this page has ${data.details.length}.`);
    return found;
  }

  /** @param {number} row */
  function example(row) {
    const found = data.examples[String(row)];
    if (!found) throw new Error(`example ${row} is not in this page, which holds ${Object.keys(data.examples).length} of them; the notebook has all.`);
    return found;
  }

  /**
   * @param {Request} request
   * @returns {{ answer: any, buffers: DataView[] }} throws when the page does not have it
   */
  return (request) => {
    const drawn = heat(request);
    if (drawn) return drawn;
    /** @returns {any} */
    const answer = () => {
      if (request.ask === "component") return detail(request.component);
      if (request.ask === "tops") return { rows: request.components.map((component) => detail(component).top.map(({ row }) => row)) };
      if (request.ask === "examples") return request.rows.map(example);
      if (request.ask === "search") return find(entries, request.query);
      if (request.ask === "band") {
        return (data.bands[request.component]?.[request.band] ?? []).map(([row, coefficient]) => ({ ...example(row), coefficient, tokens: null, aside: [], duplicates: [] }));
      }
      throw new Error("this page has no model to run; open the decomposition in a notebook for that.");
    };
    return { answer: answer(), buffers: [] };
  };
}

/** The explorer's model. @param {PageData} data @returns {any} */
export function createHost(data) {
  const answers = createAnswers(data);
  /** @type {Record<string, any>} a page has no model to run, whatever was said when it was saved */
  const traits = { ...data.state, panels: data.panels, overview: { ...data.overview, live: false, saved: true } };
  for (const name of KEPT) traits[name] = data[name];
  return createModel(traits, answers);
}

/**
 * A model whose traits live in the page, and which answers by a function.
 * @param {Record<string, any>} traits
 * @param {(request: any) => { answer: any, buffers: DataView[] }} answers throws what it cannot answer
 * @returns {any} get, set, on, off, save_changes and send, as far as widgets use them
 */
export function createModel(traits, answers) {
  /** @type {Map<string, Set<(...args: any[]) => void>>} */
  const listeners = new Map();
  /** @param {string} name @param {...any} args */
  const tell = (name, ...args) => {
    for (const listener of [...(listeners.get(name) ?? [])]) listener(...args);
  };
  return {
    /** @param {string} name */
    get: (name) => traits[name],
    /** @param {string} name @param {any} value */
    set(name, value) {
      if (JSON.stringify(traits[name]) === JSON.stringify(value)) return;
      traits[name] = value;
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
          const { answer, buffers } = answers(request);
          tell("msg:custom", { id: request.id, answer }, buffers);
        } catch (error) {
          tell("msg:custom", { id: request.id, error: error instanceof Error ? error.message : String(error) }, []);
        }
      });
    },
  };
}
