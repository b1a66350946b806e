// Invented data in the shape of src/protocol.d.ts, with a fixed seed: questions, a few components with a meaning, the rest
// noise. Used by the development page and by the tests.

const CLASSES = ["DESC", "ENTY", "ABBR", "HUM", "NUM", "LOC"];
const OPENINGS = [
  ["why does", "DESC", "reason"], ["how many", "NUM", "count"], ["where is", "LOC", "other"], ["who wrote", "HUM", "ind"],
  ["what animal is", "ENTY", "animal"], ["what does the letters mean in", "ABBR", "exp"], ["how do you", "DESC", "manner"], ["what year did", "NUM", "date"],
];
const OBJECTS = ["a candle need a wick", "the longest river", "jets leave a trail", "the novel ulysses", "people shake hands", "a bone in the body", "the finger lakes", "a lobster"];

/** A small generator (mulberry32), so that pictures and tests are the same every time. @param {number} seed */
function generator(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const round = (/** @type {number} */ value, digits = 4) => Number(value.toFixed(digits));

/** @param {number} nComponents @param {number} nExamples */
export function inventData(nComponents = 32, nExamples = 2000) {
  const random = generator(7);
  const examples = Array.from({ length: nExamples }, (_, row) => {
    const kind = row % OPENINGS.length;
    const [opening, gold] = OPENINGS[kind];
    const prediction = random() < 0.92 ? gold : CLASSES[Math.floor(random() * CLASSES.length)];
    return { row, kind, text: `${opening} ${OBJECTS[Math.floor(random() * OBJECTS.length)]} ?`, gold, prediction, probability: round(0.7 + 0.29 * random(), 3) };
  });
  const order = examples.map(({ row }) => row).sort((a, b) => examples[a].kind - examples[b].kind || a - b);
  const weights = Array.from({ length: nComponents }, (_, j) =>
    examples.map(({ kind }) => (kind === j % OPENINGS.length && random() < 4 / (2 + j) ? round(0.15 + 0.7 * random() ** 1.5, 3) : random() < 0.05 ? round(0.12 * random(), 3) : 0)));

  const shares = weights.map((row) => row.reduce((sum, value) => sum + value * value, 0));
  const allShares = shares.reduce((a, b) => a + b, 0);
  const components = weights.map((row, j) => {
    const [opening, gold, fine] = OPENINGS[j % OPENINGS.length];
    const used = row.filter((value) => value > 0);
    const largest = Math.max(...used);
    const histogram = Array.from({ length: 24 }, () => 0);
    for (const value of used) histogram[Math.min(23, Math.floor((24 * value) / largest))] += 1;
    return {
      component: j, label: opening.split(" ").slice(0, 2).join(" · "), share: round(shares[j] / allShares), examples: used.length, histogram,
      max_coefficient: largest, main_label: gold, purity: j % 3 ? 1 : 0.9, counted: 20, errors: j % 3 ? 0 : 0.1, kl_ratio: j % 5 === 4 ? null : [round(6 + j / 3, 2), round(0.2 + j / 50, 2)],
      fine: j % 4 === 3 ? null : { column: "fine_label", name: fine, share: 0.95, expected: 0.21 },
    };
  });

  // one row an example, as Python quantises it: only what is nothing is 0
  const bytes = new Uint8Array(nComponents * nExamples);
  weights.forEach((row, j) => row.forEach((value, example) => {
    if (value > 0) bytes[example * nComponents + j] = Math.max(1, Math.round((255 * value) / components[j].max_coefficient));
  }));

  const strengths = [-1, -0.8, -0.6, -0.4, -0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1];
  const kinds = ["attention query", "attention key", "attention value", "attention output", "mlp in", "mlp out"];
  /** @type {any[]} */
  const details = [];
  weights.forEach((row, j) => {
    const rows = order.slice().sort((a, b) => row[b] - row[a]).slice(0, 20).filter((example) => row[example] > 0);
    const top = rows.map((example, i) => {
      const { text, gold, prediction, probability } = examples[example];
      const raw = text.split(" ").map((word, w) => ({ word, value: (w < 2 ? 3 : 1) * random() - (w > 4 ? 0.5 : 0) }));
      const total = raw.reduce((sum, { value }) => sum + value, 0) || 1;
      return {
        row: example, coefficient: row[example], text, gold, prediction, probability, duplicates: i === 2 ? rows.slice(-2) : [],
        tokens: raw.map(({ word, value }) => ({ text: word, share: round((0.5 * value) / Math.abs(total)), space: true })), aside: [{ name: "[CLS]", share: 0.45 }, { name: "[SEP]", share: 0.05 }],
      };
    });
    const turned = (/** @type {number} */ s) => 1 - Math.exp(-6 * s * s);
    const probabilities = strengths.map((s) => top.map(({ prediction, probability }, i) => {
      const gone = Math.min(1, turned(s) * (0.5 + 0.05 * i)) * (s < 0 ? 1 : 0.2) * probability;
      const other = CLASSES[(CLASSES.indexOf(prediction) + 1) % CLASSES.length];
      return CLASSES.map((name) => round(name === prediction ? probability - gone : (1 - probability) / (CLASSES.length - 1) + (name === other ? gone : 0)));
    }));
    details[j] = {
      component: j, top, unavailable: null, bands: bandsOf(row),
      enriched: [
        { column: "word", values: [{ name: OPENINGS[j % OPENINGS.length][0].split(" ")[0], count: 18, of: 20, low: 0.7, high: 0.97, everywhere: 0.13 }] },
        { column: "label", values: [{ name: OPENINGS[j % OPENINGS.length][1], count: 19, of: 20, low: 0.76, high: 0.99, everywhere: 0.21 }] },
      ],
      neighbours: [1, 2, 3].map((step) => ({ component: (j + step) % nComponents, cosine: round(0.4 / step), together: round(0.2 - 0.08 * step) })).filter(({ component }) => component !== j), other_energy: [{ name: "pooler", value: 0.14 }, { name: "embeddings", value: 0.02 }],
      energy: { layers: [0, 1, 2, 3, 4, 5].map((l) => `layer ${l}`), kinds, values: [0, 1, 2, 3, 4, 5].map((l) => kinds.map((_, k) => (l === 0 && k === 0 ? null : round(0.005 + 0.09 * random() * (k > 1 ? 1 : 0.1) * (l / 5))))) },
      sweep: {
        strengths, kl_top: strengths.map((s) => round(turned(s) * (s < 0 ? 3.1 : 1.2))), kl_baseline: strengths.map((s) => round(turned(s) * 0.14)), kl_random: strengths.map((s) => round(turned(s) * 0.03)),
        n_top: 20, n_baseline: 200, logits: null, rows: top.map(({ row }) => row), probabilities,
      },
    };
  });

  /** @param {number[]} numbers @param {number} bytesEach */
  const base64 = (numbers, bytesEach) => {
    const buffer = Buffer.alloc(numbers.length * bytesEach);
    numbers.forEach((value, i) => (bytesEach === 4 ? buffer.writeInt32LE(value, 4 * i) : buffer.writeInt16LE(value, 2 * i)));
    return buffer.toString("base64");
  };
  const orders = ["strongest component", "component in focus", "column: label"];
  return {
    overview: {
      title: "Invented questions", subtitle: `${nExamples} examples · no model · explained 41 %`, live: false, classes: CLASSES, n_examples: nExamples, n_components: nComponents,
      components, orders, columns: [{ name: "label", values: CLASSES }], strengths: { low: -1, high: 1, step: 0.01 },
      places: nComponents < 3 ? null : components.map((_, j) => [round(0.5 + 0.45 * Math.cos(2.4 * j) * Math.sqrt(j / nComponents)), round(0.5 + 0.45 * Math.sin(2.4 * j) * Math.sqrt(j / nComponents))]),
    },
    panels: ["components", "table", "heatmap", "map", "lab", "text", "trace"],
    state: { component: 0, strength: 0, selection: [], order: orders[0], strip: "label", theme: "auto" },
    labels: {}, notes: {}, stars: [], details,
    bands: weights.map((row) => bandsOf(row).map(({ low, high }) => row.map((value, example) => [example, value]).filter(([, value]) => (high === 0 ? value === 0 : value > low && value <= high)).slice(0, 8))),
    heat: {
      matrix: Buffer.from(bytes).toString("base64"), sample: null, orders: { [orders[0]]: base64(order, 4) }, rows: {},
      codes: { label: base64(examples.map(({ gold }) => CLASSES.indexOf(gold)), 2) },
    },
    examples: Object.fromEntries(examples.map(({ row, text, gold, prediction, probability }) => {
      const coefficients = weights.map((values, component) => ({ component, value: values[row] })).filter(({ value }) => value > 0).sort((a, b) => b.value - a.value).slice(0, 8);
      return [row, { row, text, gold, prediction, probability, coefficients, unexplained: round(1 - Math.min(0.9, coefficients.reduce((sum, { value }) => sum + value * value, 0) + 0.1), 3) }];
    })),
  };
}

/** Quarters of the largest coefficient, and those that use nothing. @param {number[]} row */
function bandsOf(row) {
  const largest = Math.max(...row);
  const edges = [1, 0.75, 0.5, 0.25, 0].map((part) => part * largest);
  return edges.map((high, i) => {
    const low = edges[i + 1] ?? 0;
    const examples = row.filter((value) => (high === 0 ? value === 0 : value > low && value <= high)).length;
    return { low, high, examples, share: round(examples / row.length) };
  });
}
