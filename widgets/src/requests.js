/**
 * Questions to Python (or to the host of a static page) and their answers, matched by a uuid. Several views of one model
 * hear every answer; each takes its own.
 */

/** @import { AnyModel } from "@anywidget/types" */
/** @import { Request } from "./protocol.js" */
/** @import { Scope } from "./scope.js" */

/** @typedef {{ done: number, total: number, note: string }} Progress */
/** @template T @typedef {{ promise: Promise<T>, cancel: () => void }} Pending */
/** @typedef {ReturnType<typeof createRequests>} Requests */

/** The person, or a newer question, no longer wants the answer. */
export class Cancelled extends Error {}

export function uuid() {
  // randomUUID exists on https and localhost only; a notebook server in the local network is often plain http
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * @param {AnyModel} model
 * @param {Scope} scope
 */
export function createRequests(model, scope) {
  /** @type {Map<string, { resolve: (answer: any) => void, reject: (reason: Error) => void, onProgress?: (progress: Progress, partial?: any) => void }>} */
  const waiting = new Map();

  /** @param {any} message @param {DataView[]} [buffers] */
  const receive = (message, buffers = []) => {
    const request = waiting.get(message?.id);
    if (!request) return; // cancelled, or another view's
    if (message.progress) {
      request.onProgress?.(message.progress, message.partial);
      return;
    }
    waiting.delete(message.id);
    // binary parts travel beside the JSON
    if ("answer" in message) request.resolve(buffers.length ? { ...message.answer, buffers } : message.answer);
    else request.reject(new Error(String(message.error ?? "the answer was empty")));
  };
  model.on("msg:custom", receive);
  scope.add(() => {
    model.off("msg:custom", receive);
    for (const id of [...waiting.keys()]) cancel(id);
  });

  /** @param {string} id */
  function cancel(id) {
    const request = waiting.get(id);
    if (!request) return;
    waiting.delete(id);
    model.send({ id, ask: "cancel" });
    request.reject(new Cancelled("cancelled"));
  }

  return {
    /**
     * @param {Exclude<Request, { ask: "cancel" }>} request
     * @param {(progress: Progress, partial?: any) => void} [onProgress]
     * @returns {Pending<any>}
     */
    ask(request, onProgress) {
      const id = uuid();
      const promise = new Promise((resolve, reject) => waiting.set(id, { resolve, reject, onProgress }));
      try {
        model.send({ id, ...request });
      } catch (error) {
        // a notebook without a kernel, or with another one than this view was made in: say so where the answer would have been
        const request = waiting.get(id);
        waiting.delete(id);
        request?.reject(new Error(`the kernel that made this view is gone; run the cell again (${error instanceof Error ? error.message : error})`));
      }
      return { promise, cancel: () => cancel(id) };
    },
  };
}
