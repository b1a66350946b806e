/** What the person looks for and how it is sorted; the list, the table, the heatmap and the map follow the same choice. */

/** @import { ComponentSummary, Found } from "./protocol.js" */
/** @import { Pending, Requests } from "./requests.js" */
/** @import { Scope } from "./scope.js" */
/** @import { Traits } from "./traits.js" */
/** @import { SortKey } from "./listing.js" */
import { SORTS, arrange, named, parseSort } from "./listing.js";
import { createSignal } from "./signal.js";

/** Someone who types asks once they pause. */
const PAUSE_MS = 150;

/** @typedef {ReturnType<typeof createView>} View */

/** @param {Traits} traits @param {Requests} requests @param {Scope} scope */
export function createView(traits, requests, scope) {
  const changed = createSignal();
  /** @type {{ query: string, why: Map<number, string> }} what Python found in words and examples, which are not all here; most relevant first */
  let found = { query: "", why: new Map() };
  /** @type {Pending<Found> | null} */
  let running = null;
  let searching = false;
  let trouble = "";
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  scope.add(() => clearTimeout(timer));
  /** @type {Set<number>} of which the name, the note or the label has it */
  let byName = new Set();
  /** @type {ComponentSummary[]} */
  let components = [];
  arrangeAll();

  function arrangeAll() {
    const { key, falling } = parseSort(traits.get("sort"));
    const query = traits.get("query");
    const [labels, notes] = [traits.get("labels"), traits.get("notes")];
    let shown = traits.overview?.components ?? [];
    byName = new Set();
    if (query.trim()) {
      for (const summary of shown) if (named(summary, labels, notes, query)) byName.add(summary.component);
      // what was found for the beginning of the query stands until the whole is answered: rows shall go, not go and come back
      const words = query === found.query || (searching && found.query && query.startsWith(found.query)) ? found.why : null;
      shown = shown.filter(({ component }) => byName.has(component) || words?.has(component));
    }
    components = arrange(shown, labels, notes, traits.get("stars"), key, falling);
  }

  const update = () => {
    arrangeAll();
    changed.emit();
  };

  function look() {
    running?.cancel();
    running = null;
    trouble = "";
    clearTimeout(timer);
    const query = traits.get("query");
    searching = query.trim() !== "" && query !== found.query;
    update();
    if (!searching) return;
    timer = setTimeout(() => {
      const pending = requests.ask({ ask: "search", query });
      running = pending;
      /** @param {() => void} take */
      const ended = (take) => {
        if (running !== pending) return; // the person typed on
        running = null;
        searching = false;
        take();
        update();
      };
      pending.promise.then(
        (/** @type {Found} */ answer) => ended(() => {
          found = { query, why: new Map(answer.components.map((number, i) => [number, answer.why?.[i] ?? ""])) };
        }),
        // names were searched here; without an answer that is all there is, and it is said
        (error) => ended(() => { trouble = error.message; }),
      );
    }, PAUSE_MS);
  }

  traits.onChange(scope, ["labels", "notes", "stars", "sort"], update);
  traits.onChange(scope, ["query"], look);
  if (traits.get("query").trim()) look();

  return {
    changed,
    get query() {
      return traits.get("query");
    },
    /** Is an answer still on its way that may bring more? */
    get searching() {
      return searching;
    },
    /** Why words and examples could not be searched, or "". */
    get trouble() {
      return trouble;
    },
    get sort() {
      return parseSort(traits.get("sort")).key;
    },
    get descending() {
      return parseSort(traits.get("sort")).falling;
    },
    /** The components that are shown, in order. */
    get components() {
      return components;
    },
    /** The component that fits the query best: by its name before by its words before by its examples. */
    get best() {
      const shown = new Set(components.map(({ component }) => component));
      const relevant = [...found.why.keys()].filter((number) => shown.has(number));
      return relevant.find((number) => byName.has(number)) ?? components.find(({ component }) => byName.has(component))?.component ?? relevant[0] ?? components[0]?.component ?? null;
    },
    /** Where the query was found in a component, if not in its name; "" without a query. @param {number} number */
    why(number) {
      return traits.get("query").trim() && !byName.has(number) ? found.why.get(number) ?? "" : "";
    },
    /** @param {string} query */
    search(query) {
      traits.update({ query });
    },
    /** @param {SortKey} key falling or rising as people expect it first; once more turns it round */
    sortBy(key) {
      const { key: now, falling } = parseSort(traits.get("sort"));
      const first = SORTS.find((sort) => sort.key === key)?.descending ?? false;
      traits.update({ sort: `${(now === key ? !falling : first) ? "-" : ""}${key}` });
    },
  };
}
