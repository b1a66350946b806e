/**
 * What Python and the page say to each other. The Python side of each shape is built in `npeff_nb/widgets/bundle.py`.
 *
 * State (anywidget traits, synchronised):
 *   overview     Overview    set once by Python: small, enough for the list and the heatmap
 *   heat         DataView    uint8, n_components x n_examples, row-major, columns already in `overview.order`;
 *                            255 is the largest coefficient of that component (overview.components[j].max_coefficient)
 *   component    number      the component in focus; either side may set it
 *   strength     number      the strength of the edit, committed (on release); either side may set it
 *   selection    number[]    example rows the person picked; either side may set it
 *   labels       Record<string, string>   component number -> name given by the person; absent means the default label
 *   theme        "auto" | "light" | "dark"
 *
 * Requests (custom messages): the page sends {id, ask, ...}; Python, or the host of a static page, answers {id, answer} or {id, error}.
 * While a long request runs, {id, progress: {done, total, note}} may come first, and the page may send {id, ask: "cancel"}.
 * For "component" a progress message may carry `partial`, a ComponentDetail with what is known so far; it is shown meanwhile.
 */

export interface Overview {
  title: string; // "TREC questions"
  subtitle: string; // "2000 examples · MiniLM · explained 41 %"
  live: boolean; // is a model at hand to answer "strength" with a true forward?
  classes: string[];
  n_examples: number;
  n_components: number;
  components: ComponentSummary[]; // in order of component number
  order: number[]; // example rows in the order of the heatmap's columns
  strip: { column: string; names: string[]; codes: number[] }; // colour strip under the heatmap, codes in `order`; -1 unknown
  strengths: { low: number; high: number; step: number }; // the slider
}

export interface ComponentSummary {
  component: number;
  label: string; // default label, e.g. "how · many"
  share: number; // share of the explained energy, 0..1 over all components
  examples: number; // how many examples use it
  histogram: number[]; // counts of positive coefficients in equal bins
  max_coefficient: number;
  main_label: string; // commonest gold label (or prediction) among the top examples
  purity: number; // its share among the top examples
  counted?: number; // top examples that `purity` and `fine` are counted over; without it they are shown in percent
  fine: { column: string; name: string; share: number; expected: number } | null; // a finer column, if the table has one; both shares 0..1, expected by chance
  keywords: string; // lower-case text the search looks into: words, labels, top examples
}

/** Answer to {ask: "component", component}. */
export interface ComponentDetail {
  component: number;
  top: ExampleRow[]; // by falling coefficient
  energy: { layers: string[]; kinds: string[]; values: (number | null)[][] } | null; // share of the squared direction; rows bottom layer first
  other_energy: { name: string; value: number }[]; // what is no layer x kind cell (pooler, ...)
  sweep: Sweep | null;
  unavailable: string | null; // why tokens, energy or sweep are missing, and what to do about it
}

export interface ExampleRow {
  row: number;
  coefficient: number;
  text: string;
  tokens: Token[] | null;
  aside: { name: string; share: number }[]; // special tokens ("[CLS]"), shown beside the sentence, not in it
  gold: string | null;
  prediction: string;
  probability: number;
  note: string | null; // e.g. "also 3 near-duplicates"
}

export interface Token {
  text: string; // as read: word pieces already joined to words
  share: number; // of the coefficient, may be negative; all tokens and asides add up to 1
  space: boolean; // is there a space before it?
}

/** The edit over a grid of strengths. KL is KL(perturbed || original), in nats. */
export interface Sweep {
  strengths: number[]; // rising, contains 0
  kl_top: number[]; // mean over the top set
  kl_baseline: number[]; // mean over the disjoint random baseline
  kl_random: number[]; // the same top set under a random direction of the same norm
  n_top: number;
  n_baseline: number;
  probabilities: number[][][]; // strengths x shown top rows (same order as `top`) x classes
}

/** Answer to {ask: "strength", component, strength}: the model really run. */
export interface StrengthResult {
  strength: number;
  kl_top: number;
  kl_baseline: number;
  probabilities: number[][]; // shown top rows x classes
}

/** Answer to {ask: "examples", rows}: what the heatmap's hover and the picked examples show. */
export interface ExampleDetail {
  row: number;
  text: string;
  gold: string | null;
  prediction: string;
  probability: number;
  coefficients: { component: number; value: number }[]; // largest first
  unexplained: number; // 1 - share of the unit-norm Fisher that the components explain, 0..1
}

export type Request =
  | { ask: "component"; component: number }
  | { ask: "strength"; component: number; strength: number }
  | { ask: "examples"; rows: number[] }
  | { ask: "cancel" };
