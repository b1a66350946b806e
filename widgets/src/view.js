/** What the person looks for in the list and how it is sorted; the heatmap follows the same order. */

/** @import { Scope } from "./scope.js" */
/** @import { Traits } from "./traits.js" */
/** @import { SortKey } from "./listing.js" */
import { SORTS, arrange } from "./listing.js";
import { createSignal } from "./signal.js";

/** @typedef {ReturnType<typeof createView>} View */

/** @param {Traits} traits @param {Scope} scope */
export function createView(traits, scope) {
  const changed = createSignal();
  const state = { query: "", sort: SORTS[0].key, descending: SORTS[0].descending };
  const arranged = () => arrange(traits.overview?.components ?? [], traits.labels, state);
  let components = arranged();

  /** @param {Partial<typeof state>} change */
  const update = (change) => {
    Object.assign(state, change);
    components = arranged();
    changed.emit();
  };
  traits.onChange(scope, ["labels"], () => update({}));

  return {
    changed,
    get query() {
      return state.query;
    },
    get sort() {
      return state.sort;
    },
    get descending() {
      return state.descending;
    },
    /** The components that are shown, in order. */
    get components() {
      return components;
    },
    /** @param {string} query */
    search(query) {
      update({ query });
    },
    /** @param {SortKey} sort */
    sortBy(sort) {
      update({ sort, descending: SORTS.find(({ key }) => key === sort)?.descending ?? false });
    },
    reverse() {
      update({ descending: !state.descending });
    },
  };
}
