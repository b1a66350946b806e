// Invented edits, for tests and pictures: logits that answer to a strength by a known curve, packed as Python packs them.

/** As npeff_nb/explain/packed.py. @param {number[][]} rows one an example, flat @param {number[]} shape of one example */
export function pack(rows, shape) {
  const scale = rows.map((row) => {
    const largest = Math.max(0, ...row.map(Math.abs));
    return largest ? Number((1.0001 * largest / 32767).toPrecision(5)) : 1;
  });
  const bytes = Buffer.alloc(2 * rows.length * (rows[0]?.length ?? 0));
  rows.flatMap((row, i) => row.map((value) => Math.round(value / scale[i]))).forEach((value, at) => bytes.writeInt16LE(value, 2 * at));
  return { shape: [rows.length, ...shape], scale, data: bytes.toString("base64") };
}

/**
 * z(s) = z + s dz + s² bend, for examples `rows`: the first nTop use the component, the others feel it little.
 * @param {{ rows: number[], nTop: number, classes: number, family?: "categorical" | "bernoulli", component?: number }} of
 */
export function inventEdit({ rows, nTop, classes, family = "categorical", component = 0 }) {
  let seed = 1 + component;
  const draw = () => ((seed = (seed * 16807) % 2147483647) / 2147483647) * 2 - 1;
  const make = (size) => rows.map((_, i) => Array.from({ length: classes }, () => size * draw() * (i < nTop ? 1 : 0.2)));
  const z = rows.map((_, i) => Array.from({ length: classes }, (_, c) => (c === i % classes ? 6 : 0) + draw()));
  const [dz, bend] = [make(4), make(6)];
  const truth = (s) => z.map((row, i) => row.map((one, c) => one + s * dz[i][c] + s * s * bend[i][c]));
  const preview = {
    component, along: component, rows, n_top: nTop, n_baseline: rows.length - nTop, logits: pack(z, [classes]), derivative: pack(dz, [classes]), family, trusted: null,
  };
  /** @param {number[]} strengths @param {(moved: number[][], still: number[][]) => [number, number]} kls */
  const sweep = (strengths, kls) => {
    const all = strengths.map(truth);
    const figures = all.map((moved) => kls(moved, z));
    return {
      strengths, kl_top: figures.map(([top]) => top), kl_baseline: figures.map(([, others]) => others), kl_random: strengths.map((s) => 0.001 * s * s),
      n_top: nTop, n_baseline: rows.length - nTop, logits: pack(rows.map((_, i) => all.flatMap((moved) => moved[i])), [strengths.length, classes]), rows: rows.slice(0, nTop),
      probabilities: null,
    };
  };
  return { z, dz, bend, truth, preview, sweep };
}
