/**
 * What turning components does at the strengths that are shown. While a slider moves it is a first-order preview, or, where
 * the model was already run on both sides, interpolated; once it is let go, a live model is really run. The state says
 * which of these is on the screen.
 */

/** @import { Packed, Preview, StrengthResult, Sweep } from "./protocol.js" */
/** @import { Requests, Pending, Progress } from "./requests.js" */
/** @import { Judge, Logits, Response } from "./judge.js" */
/** @import { Grid } from "./sweep.js" */
/** @import { Scope } from "./scope.js" */
/** @import { Traits } from "./traits.js" */
/** @import { Focus } from "./focus.js" */
import { createJudge, reader, stepped } from "./judge.js";
import { unpack } from "./packed.js";
import { Cancelled } from "./requests.js";
import { createSignal } from "./signal.js";
import { toStrength } from "./slide.js";
import { covers, createGrid, randomAt, roughAt, runAt } from "./sweep.js";

/** @typedef {"original" | "preview" | "interpolated" | "computed" | "unknown"} Source unknown: what some component does to these examples is not here */
/** @typedef {{ state: "still" } | { state: "running", progress: Progress | null } | { state: "failed" | "cancelled", message: string }} Work */
/** @typedef {{ before: Response, after: Response, source: Source }} Shown */
/** @typedef {{ strengths: number[], top: number[], baseline: number[] }} Curve */
/** @typedef {ReturnType<typeof createEffect>} Effect */

/** Commits that follow each other faster than this wait for the last of them. */
const PAUSE_MS = 150;
/** Results of runs that are kept. */
const KEPT = 60;
/** Points of a curve on either side of zero. */
const POINTS = 32;

/**
 * @param {Traits} traits
 * @param {Focus} focus
 * @param {Requests} requests
 * @param {Scope} scope
 */
export function createEffect(traits, focus, requests, scope) {
  const changed = createSignal();
  /** @type {Map<string, StrengthResult>} */
  const results = new Map();
  /** @type {{ component: number, strength: number } | null} the slider under the thumb */
  let moving = null;
  /** @type {{ key: string, pending: Pending<StrengthResult>, progress: Progress | null } | null} */
  let running = null;
  /** @type {{ key: string, state: "failed" | "cancelled", message: string } | null} */
  let trouble = null;
  let asked = -Infinity;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let later;
  /** @type {Map<string, Preview | Pending<Preview> | Error>} "focus along" -> first-order responses that the detail lacks */
  const responses = new Map();
  /** @type {WeakMap<object, any>} what was derived from parts of a detail */
  const derived = new WeakMap();
  /** @type {Shown | null | undefined} of this moment; undefined until someone looks */
  let looked;

  const emit = () => {
    looked = undefined;
    changed.emit();
  };

  /** @template T @param {object} from @param {string} name @param {() => T} make @returns {T} */
  function once(from, name, make) {
    const made = derived.get(from) ?? {};
    derived.set(from, made);
    return (made[name] ??= make());
  }

  const classes = () => traits.overview?.classes ?? [];
  const range = () => traits.overview?.strengths ?? { low: -1, high: 1, step: 0.01 };
  /** Further components and their strengths, committed; the one in focus is none of them. */
  const others = () => Object.entries(traits.get("others")).map(([name, strength]) => /** @type {[number, number]} */ ([Number(name), strength]))
    .filter(([component]) => component !== traits.component && traits.summary(component));

  /** @param {boolean} live with the slider under the thumb @returns {Map<number, number>} the component in focus first */
  function strengths(live) {
    const all = new Map([/** @type {[number, number]} */ ([traits.component, traits.strength]), ...others()]);
    if (live && moving && all.has(moving.component)) all.set(moving.component, moving.strength);
    return all;
  }

  /** @param {boolean} live */
  const edits = (live) => [...strengths(live)].filter(([, strength]) => strength !== 0);
  /** @param {boolean} live */
  const key = (live) => `${traits.component}: ${edits(live).sort(([a], [b]) => a - b).map((edit) => edit.join(" ")).join(", ")}`;

  /** @returns {Sweep | null} */
  const sweep = () => focus.detail?.sweep ?? null;

  /** @returns {Preview | null} of the component in focus along itself */
  function preview() {
    const kept = focus.detail?.preview ?? responses.get(`${traits.component} ${traits.component}`);
    return kept && "logits" in kept ? kept : null;
  }

  /** @returns {Judge | null} */
  function judge() {
    const kept = preview();
    return kept && once(kept, "judge", () => createJudge(kept, classes()));
  }

  /** @returns {Grid | null} */
  function grid() {
    const [run, by] = [sweep(), judge()];
    return run?.logits && by ? once(run, "grid", () => createGrid(run, by)) : null;
  }

  /** How the examples in focus respond to a component. @param {number} along @returns {Logits[] | null} */
  function derivative(along) {
    if (along === traits.component) return judge()?.derivative ?? null;
    /** @type {Record<string, Packed> | undefined} */
    const kept = focus.detail?.along;
    const answer = responses.get(`${traits.component} ${along}`);
    const packed = kept?.[along] ?? (answer && "derivative" in answer ? answer.derivative : null);
    return packed && once(packed, "derivative", () => unpack(packed));
  }

  /** First-order responses that are not here are asked for as soon as a component has a slider. */
  function wantResponses() {
    for (const [name, answer] of responses) {
      const [component, along] = name.split(" ").map(Number);
      if ("cancel" in answer && (component !== traits.component || (along !== component && !strengths(false).has(along)))) answer.cancel();
    }
    if (!traits.overview?.live || !focus.detail) return;
    const missing = others().map(([component]) => component).filter((component) => judge() && !derivative(component));
    // an older profile has strengths and no preview
    if (!judge() && sweep() && !focus.partial) missing.push(traits.component);
    for (const along of missing) {
      const name = `${traits.component} ${along}`;
      if (responses.has(name)) continue;
      /** @type {Pending<Preview>} */
      const pending = requests.ask({ ask: "preview", component: traits.component, along });
      responses.set(name, pending);
      pending.promise.then(
        (answer) => {
          responses.set(name, answer);
          emit();
        },
        (error) => {
          if (error instanceof Cancelled) responses.delete(name);
          else responses.set(name, error);
          emit();
        },
      );
    }
  }

  function run() {
    const wanted = key(false);
    if (running && running.key !== wanted) {
      const { pending } = running;
      running = null;
      pending.cancel();
    }
    clearTimeout(later);
    const needed = traits.overview?.live && edits(false).length > 0 && (sweep() || preview()) && !alreadyRun();
    if (needed && !running && !results.has(wanted) && trouble?.key !== wanted) {
      const wait = asked + PAUSE_MS - Date.now();
      if (wait > 0) later = setTimeout(ask, wait);
      else ask();
    }
    wantResponses();
    emit();
  }

  /** Was the model run here for the grid, and is all that it said there? */
  function alreadyRun() {
    const [first, ...more] = edits(false);
    return more.length === 0 && first[0] === traits.component && grid() !== null && runAt(grid()?.strengths ?? [], first[1]);
  }

  function ask() {
    asked = Date.now();
    const wanted = key(false);
    /** @type {Pending<StrengthResult>} */
    const pending = requests.ask({ ask: "strength", component: traits.component, strengths: Object.fromEntries(edits(false)) }, (progress) => {
      if (running?.pending !== pending) return;
      running.progress = progress;
      emit();
    });
    const mine = { key: wanted, pending, progress: null };
    running = mine;
    pending.promise.then(
      (result) => {
        results.set(wanted, result);
        for (const old of results.keys()) if (results.size > KEPT) results.delete(old);
        if (running === mine) running = null;
        emit();
      },
      (error) => {
        if (running !== mine) return; // overtaken by other strengths or another component
        running = null;
        trouble = { key: wanted, state: error instanceof Cancelled ? "cancelled" : "failed", message: error.message };
        emit();
      },
    );
  }
  scope.add(() => clearTimeout(later));

  /** @returns {{ response: Response, source: Source, before?: Response }} */
  function respond() {
    const [run, by, lines, moved] = [sweep(), judge(), grid(), edits(true)];
    const own = strengths(true).get(traits.component) ?? 0;
    const still = by?.still ?? roughAt(/** @type {Sweep} */ (run), 0);
    if (moved.length === 0) return { response: still, source: "original" };
    const result = results.get(key(true));
    const random = run && moved.length === 1 && own !== 0 ? randomAt(run, own) : null;
    if (result) {
      const { kl_top, kl_baseline } = result;
      if (by) return { response: { ...by.told(result.probabilities, [kl_top, kl_baseline]), kl_random: random }, source: "computed" };
      const rough = /** @type {Response} */ ({ ...roughAt(/** @type {Sweep} */ (run), own), kl_top, kl_baseline, of: (row) => result.probabilities[result.rows.indexOf(row)] });
      return { response: rough, source: "computed" };
    }
    const known = run !== null && covers(run.strengths, own);
    if (moved.length === 1 && own !== 0 && known) {
      const source = runAt(run.strengths, own) ? "computed" : "interpolated";
      if (lines) return { response: lines.judge(own), source };
      // of the shown examples alone, so before as well as after
      if (run.probabilities) return { response: roughAt(run, own), source, before: roughAt(run, 0) };
    }
    const terms = moved.map(([component, strength]) => ({ component, derivative: derivative(component), strength }));
    if (!by || terms.some((term) => !term.derivative)) {
      return { response: { ...still, flips_top: null, flips_baseline: null, mean_top: null, mean_baseline: null, of: () => undefined }, source: "unknown" };
    }
    // the component in focus as truly as it is known, what is added to it to first order
    const rest = /** @type {{ derivative: Logits[], strength: number }[]} */ (lines && known ? terms.filter(({ component }) => component !== traits.component) : terms);
    const response = by.judge(stepped(lines && known ? lines.at(own) : by.logits, rest));
    return { response: { ...response, kl_random: random }, source: "preview" };
  }

  /** @returns {Shown | null} */
  function look() {
    if (!sweep() && !judge()) return null;
    const { response, source, before } = respond();
    return { before: before ?? judge()?.still ?? roughAt(/** @type {Sweep} */ (sweep()), 0), after: response, source };
  }

  /** @param {{ n_baseline: number }} by @param {number[]} places @param {(strength: number) => Response} judged @returns {Curve} */
  function curve(by, places, judged) {
    const along = places.map(judged);
    return { strengths: places, top: along.map(({ kl_top }) => kl_top), baseline: by.n_baseline ? along.map(({ kl_baseline }) => kl_baseline) : [] };
  }

  focus.changed.on(run);
  traits.onChange(scope, ["strength", "others"], () => {
    moving = null;
    trouble = null;
    run();
  });
  traits.onChange(scope, ["component"], () => {
    moving = null;
    trouble = null;
    looked = undefined;
  });

  return {
    changed,
    range: range(),
    /** The strength that is shown of the component in focus: the thumb's while it moves, else the committed one. */
    get strength() {
      return this.strengths.get(traits.component) ?? 0;
    },
    /** All that have a slider, the component in focus first, as they are shown. */
    get strengths() {
      return strengths(true);
    },
    get sweep() {
      return sweep();
    },
    get judge() {
      return judge();
    },
    /** What probabilities say, in words. @param {number[]} p */
    said: (p) => reader(judge()?.family ?? "categorical", classes()).said(p),
    /** Can something be shown at all? */
    get ready() {
      return sweep() !== null || preview() !== null;
    },
    /** Strengths between which the preview holds; null as long as nobody knows. @returns {[number, number] | null} */
    get trusted() {
      return preview()?.trusted ?? null;
    },
    /** @returns {Work} */
    get work() {
      if (running) return { state: "running", progress: running.progress };
      return trouble ?? { state: "still" };
    },
    /** Why it is unknown what some component does here, by component. @returns {{ component: number, why: "coming" | "no model" | string }[]} */
    get missing() {
      return edits(true).filter(([component]) => !derivative(component)).map(([component]) => {
        const answer = responses.get(`${traits.component} ${component}`);
        return { component, why: answer instanceof Error ? answer.message : traits.overview?.live ? "coming" : "no model" };
      });
    },
    /** @returns {Shown | null} null as long as nothing is known of the edit */
    get shown() {
      if (looked === undefined) looked = look();
      return looked;
    },
    /** KL over strength of the component in focus alone: where the model was run, and beyond that the preview. @returns {{ run: Curve | null, preview: Curve | null }} */
    get curves() {
      const [run, by, lines] = [sweep(), judge(), grid()];
      const { low, high } = range();
      const limit = { low, high, step: 0.0001 };
      const places = Array.from({ length: 2 * POINTS + 1 }, (_, i) => toStrength(i / POINTS - 1, limit)).filter((s, i, all) => s >= low && s <= high && s !== all[i - 1]);
      const preview = by && once(by, "curve", () => curve(by, places, (s) => by.judge(stepped(by.logits, [{ derivative: by.derivative, strength: s }]))));
      if (!run || !(run.strengths.length > 1)) return { run: null, preview };
      const finer = [...new Set([...places.filter((s) => covers(run.strengths, s)), ...run.strengths])].sort((a, b) => a - b);
      return { run: once(run, lines ? "curve" : "rough", () => curve(run, finer, (s) => lines?.judge(s) ?? roughAt(run, s))), preview };
    },
    /** Mean probabilities of the top set wherever they are known: for an order of classes that stays. @returns {number[][]} */
    get means() {
      const [run, by, lines] = [sweep(), judge(), grid()];
      return once(run ?? by ?? {}, "means", () => {
        const all = lines ? lines.strengths.map((s) => lines.judge(s)) : run && !by ? run.strengths.map((s) => roughAt(run, s))
          : by ? [-1, 1].map((s) => by.judge(stepped(by.logits, [{ derivative: by.derivative, strength: s }]))) : [];
        return all.map(({ mean_top }) => mean_top ?? []);
      });
    },
    /** Each strength's figures with both signs, where the model was run. @returns {{ strength: number, down: Response | null, up: Response | null }[]} */
    get signs() {
      const [run, lines] = [sweep(), grid()];
      const sizes = [...new Set((run?.strengths ?? []).map(Math.abs))].filter((size) => size > 0).sort((a, b) => a - b);
      /** @param {number} s */
      const at = (s) => (run && runAt(run.strengths, s) ? (lines ? lines.judge(s) : roughAt(run, s)) : null);
      return sizes.map((strength) => ({ strength, down: at(-strength), up: at(strength) }));
    },
    /** @param {number} strength while dragging @param {number} [component] */
    drag(strength, component = traits.component) {
      moving = { component, strength };
      emit();
    },
    /** @param {number} strength on release @param {number} [component] */
    commit(strength, component = traits.component) {
      moving = null;
      const before = strengths(false).get(component);
      if (strength === before) return emit();
      if (component === traits.component) traits.update({ strength });
      else traits.update({ others: { ...traits.get("others"), [component]: strength } });
    },
    /** Takes a component's slider away. @param {number} component */
    remove(component) {
      const { [String(component)]: _, ...others } = traits.get("others");
      traits.update({ others });
    },
    /** Every slider back to zero. */
    reset() {
      moving = null;
      traits.update({ strength: 0, others: Object.fromEntries(Object.keys(traits.get("others")).map((name) => [name, 0])) });
    },
    retry() {
      trouble = null;
      for (const [name, answer] of responses) if (answer instanceof Error) responses.delete(name);
      run();
    },
    cancel() {
      running?.pending.cancel();
    },
  };
}
