/**
 * What Python and the page say to each other. The Python side of each shape is built in `npeff_nb/widgets/`.
 *
 * State (anywidget traits, synchronised; either side may set all but `overview` and `panels`):
 *   overview     Overview    set once by Python; at 512 components still below 300 kB
 *   panels       PanelName[] which panels this widget has; more than one gets tabs
 *   panel        PanelName   the tab that is shown
 *   component    number      the component in focus
 *   pinned       number      a component kept beside it for comparison; -1 none
 *   strength     number      the strength of the edit along the component in focus, committed (on release)
 *   others       Record<string, number>   component number -> strength of further components edited at the same time
 *   selection    number[]    example rows the person picked
 *   example      number      the one example that "trace" and "one example" are about; -1 none
 *   labels       Record<string, string>   component number -> name given by the person; absent means the default label
 *   notes        Record<string, string>   component number -> what the person wrote about it
 *   stars        number[]    components the person marked
 *   query        string      what is searched for in the list
 *   sort         string      key of the list's order, "-" before it when falling: "-share"
 *   order        string      how the heatmap's columns are ordered: one of overview.orders
 *   strip        string      the column of the examples' table that colours the strip: one of overview.columns, or ""
 *   text         string      the person's own text
 *   tokens       "share" | "sensitivity"   what colours tokens
 *   pieces       boolean     raw tokens instead of words
 *   theme        "auto" | "light" | "dark"
 *
 * Requests (custom messages): the page sends {id, ask, ...}; Python, or the host of a static page, answers {id, answer} (with binary buffers
 * beside it where the answer says so) or {id, error}. While a long request runs, {id, progress: {done, total, note}} may come first, and the page may
 * send {id, ask: "cancel"}. A progress message may carry `partial`, an answer with what is known so far; it is shown meanwhile.
 */

export type PanelName = "components" | "table" | "heatmap" | "map" | "lab" | "text" | "trace" | "examples" | "layers";

export interface Overview {
  title: string; // "MiniLM · 32 components"
  subtitle: string; // "2000 examples · 41 % of their Fishers explained"
  live: boolean; // is a model at hand?
  sampled?: number; // of so many examples a saved page has the coefficients; all where it is missing
  saved?: boolean; // is this a saved page, without a kernel?
  classes: string[];
  n_examples: number;
  n_components: number;
  components: ComponentSummary[]; // in order of component number
  orders: string[]; // of the heatmap's columns; the first is the default
  columns: { name: string; values: string[] }[]; // columns of the examples' table that can colour a strip, and the names behind their codes
  strengths: { low: number; high: number; step: number }; // the slider
  places: [number, number][] | null; // of the components on the map, in [0, 1]; null where there are fewer than three
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
  counted: number; // top examples that `purity`, `errors` and `fine` are counted over
  errors: number | null; // share of wrong predictions among the top examples; null without gold labels
  kl_ratio: [number, number] | null; // turned down, turned up; null until it was measured
  fine: { column: string; name: string; share: number; expected: number } | null; // a finer column, if the table has one; both shares 0..1, expected by chance
}

/** Answer to {ask: "component", component}. Partial answers come first, with what needs no model. */
export interface ComponentDetail {
  component: number;
  top: ExampleRow[]; // by falling coefficient, near-duplicates folded into the first of them
  bands: Band[]; // intervals of the coefficient, highest first, the last one is zero
  enriched: { column: string; values: Enriched[] }[]; // "word" and columns of the table; what is commoner among the top examples than among all
  neighbours: { component: number; cosine: number; together: number }[]; // |cos| of directions, correlation of coefficients
  energy: { layers: string[]; kinds: string[]; values: (number | null)[][] } | null; // share of the squared direction; rows bottom layer first
  other_energy: { name: string; value: number }[]; // what is no layer x kind cell (pooler, ...)
  sweep: Sweep | null;
  preview: Preview | null; // along itself; null where it is too large to keep: then it can be asked for
  along: Record<string, Packed>; // derivatives of the same examples along other components, as far as they were asked for in the notebook
  unavailable: string | null; // why tokens, energy or sweep are missing, and what to do about it
}

export interface Band {
  low: number; // coefficient, low < w <= high
  high: number;
  examples: number;
  share: number; // of all examples
}

export interface Enriched {
  name: string;
  count: number; // top examples that have it
  of: number; // top examples
  low: number; // 95 % interval of count / of (Wilson)
  high: number;
  everywhere: number; // share of all examples
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
  duplicates: number[]; // rows of near-duplicates that stand for themselves no more
}

export interface Token {
  text: string; // as read: word pieces already joined to words
  share: number; // of the coefficient, may be negative; all tokens and asides add up to 1. As sensitivity: never negative, the largest of a text is 1
  space: boolean; // is there a space before it?
}

/** Numbers of examples: 16-bit integers, little-endian, in base64, times the scale of each example. */
export interface Packed {
  shape: number[]; // examples first
  scale: number[];
  data: string;
}

/** The edit over a grid of strengths. KL is KL(perturbed || original), in nats. While the model runs, the grid grows. */
export interface Sweep {
  strengths: number[]; // rising, contains 0
  kl_top: number[]; // mean over the top set
  kl_baseline: number[]; // mean over the disjoint random baseline
  kl_random: number[]; // the same top set under a random direction of the same norm
  n_top: number;
  n_baseline: number;
  logits: Packed | null; // examples (as in `preview` of the detail) x strengths x classes; null where classes are many, and in older files
  rows: number[]; // where there are no logits: the shown examples, and
  probabilities: number[][][] | null; // strengths x rows x classes
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

/**
 * Answer to {ask: "heat", order, focus, strip, from, to, columns}: the examples [from, to) of an order in so many columns, each with its largest
 * coefficient. Only the order by the component in focus looks at `focus`. Column c has [from + floor(c m / columns), from + floor((c + 1) m / columns)).
 * Buffers: uint8 components x columns, row-major, 255 is the largest coefficient of that component; then, with a strip, int16 columns, the commonest
 * code of each (-1 unknown).
 */
export interface Heat {
  order: string;
  from: number;
  to: number;
  columns: number;
  rows: number[] | null; // components in the order that goes with this order of examples, where there is one: clustered
}

/** Answer to {ask: "cell", order, focus, from, to, component}: the example with the largest coefficient there. {ask: "places"} tells where rows stand. */
export interface Cell {
  component: number;
  coefficient: number;
  at: number; // its place in the order
  example: ExampleDetail;
}

/** Answer to {ask: "search", query}: components whose words, labels or top examples have it, beside those whose names have it. */
export interface Found {
  components: number[]; // most relevant first
  why: string[]; // of each, where it was found: "3 of 20 top examples: …"
}

/** Answer to {ask: "tops", components}: the first few top examples of each. */
export interface Tops {
  rows: number[][];
}

/** Answer to {ask: "band", component, band}: some examples whose coefficients lie in one of `bands`, drawn at random but always the same. */
export type BandSample = ExampleRow[];

/** Answer to {ask: "tokens", component, rows, mode, pieces}: tokens of some examples, coloured in another way than `top` is. */
export interface Coloured {
  rows: { row: number; tokens: Token[]; aside: { name: string; share: number }[] }[];
}

/** Answer to {ask: "preview", component, along}: the first-order response of the component in focus's examples to a step along another, or itself. */
export interface Preview {
  component: number;
  along: number;
  rows: number[]; // top set, then baseline, then what is shown besides
  n_top: number;
  n_baseline: number;
  logits: Packed; // rows x classes
  derivative: Packed; // rows x classes, per unit of strength
  family: "categorical" | "bernoulli";
  trusted: [number, number] | null; // strengths between which the preview is off by at most a tenth of the KL; null until the truth is known
}

/** Answer to {ask: "strength", component, strengths}: the model really run, moved along several components at once. */
export interface StrengthResult {
  strengths: Record<string, number>;
  kl_top: number;
  kl_baseline: number;
  rows: number[]; // as in Preview
  probabilities: number[][]; // rows x classes
}

/** Answer to {ask: "text", text}: the person's own text through the model and the decomposition. */
export interface TextAnswer {
  text: string;
  prediction: string;
  probability: number;
  probabilities: number[]; // by overview.classes
  coefficients: { component: number; value: number }[]; // largest first, only those above zero
  unexplained: number;
  tokens: Record<string, { tokens: Token[]; aside: { name: string; share: number }[] }>; // by component, for the strongest few
  neighbours: ExampleRow[]; // examples with the most alike coefficients
}

/** Answer to {ask: "trace", component, row, text}: the trace of an example (row), or of a text (row -1). */
export interface TraceAnswer {
  component: number;
  tokens: string[];
  classes: string[];
  logits: number[];
  derivative: number[]; // by class
  layers: number;
  edges: TraceEdge[]; // strongest first; what is weaker than a hundredth of the strongest in every class is left out
  introduced: { height: number; values: number[] }[]; // by height, summed, by class
}

export interface TraceEdge {
  kind: "introduced" | "passed on" | "residual";
  module: string;
  layer: number; // -1: embeddings or head
  from: [number, number]; // token, height: 0 embeddings, 2l + 1 after attention of layer l, 2l + 2 after its MLP
  to: [number, number]; // height above the last block: the logits, token -1
  values: number[]; // by class, per unit of strength
}

/** Answer to {ask: "page", panels, state}: the explorer as one file. */
export interface PageAnswer {
  name: string;
  text: string;
}

export type Request =
  | { ask: "component"; component: number }
  | { ask: "band"; component: number; band: number }
  | { ask: "tokens"; component: number; rows: number[]; mode: "share" | "sensitivity"; pieces: boolean }
  | { ask: "preview"; component: number; along: number }
  | { ask: "strength"; component: number; strengths: Record<string, number> }
  | { ask: "examples"; rows: number[] }
  | { ask: "heat"; order: string; focus: number; strip: string; from: number; to: number; columns: number }
  | { ask: "cell"; order: string; focus: number; from: number; to: number; component: number }
  | { ask: "places"; order: string; focus: number; rows: number[] }
  | { ask: "search"; query: string }
  | { ask: "tops"; components: number[] }
  | { ask: "text"; text: string }
  | { ask: "trace"; component: number; row: number; text: string }
  | { ask: "page"; panels: PanelName[]; state: Record<string, any> }
  | { ask: "cancel" };
