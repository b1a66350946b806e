// Bundles the front end into the Python package. The result is committed, because users of the wheel have no node;
// so it must be the same on every machine: pinned esbuild, no banner, no date, no source paths.
// `--check` writes nothing and fails where a file on disk is not what the sources give.
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { basename } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = fileURLToPath(new URL(".", import.meta.url));
const out = fileURLToPath(new URL("../npeff_nb/widgets/static/", import.meta.url));

/** @type {import("esbuild").BuildOptions} */
const common = {
  absWorkingDir: here,
  bundle: true,
  minify: true,
  charset: "utf8",
  legalComments: "none",
  // container queries came with Chromium 105, Firefox 110 and Safari 16: nothing older could show the layout anyway
  target: ["chrome105", "firefox110", "safari16"],
  logLevel: "warning",
  write: false,
};

const built = await Promise.all([
  build({ ...common, entryPoints: ["src/explorer.js"], format: "esm", outfile: `${out}explorer.js` }),
  build({ ...common, entryPoints: ["src/page.js"], format: "iife", outfile: `${out}page.js` }),
  build({ ...common, entryPoints: ["src/compare.js"], format: "esm", outfile: `${out}compare.js` }),
  build({ ...common, entryPoints: ["src/compare_page.js"], format: "iife", outfile: `${out}compare_page.js` }),
  build({ ...common, entryPoints: ["src/explorer.css"], outfile: `${out}explorer.css` }),
  build({ ...common, entryPoints: ["src/progress.js"], format: "esm", outfile: `${out}progress.js` }),
  build({ ...common, entryPoints: ["src/css/progress.css"], outfile: `${out}progress.css` }),
]);
const files = built.flatMap(({ outputFiles }) => outputFiles.map(({ path, text }) => ({ path, text })));
files.push({ path: `${out}page.html`, text: await readFile(`${here}src/page.html`, "utf8") });

if (process.argv.includes("--check")) {
  const stale = [];
  for (const { path, text } of files) {
    if ((await readFile(path, "utf8").catch(() => null)) !== text) stale.push(basename(path));
  }
  if (stale.length) {
    console.error(`npeff_nb/widgets/static is not what the sources give (${stale.join(", ")}): run "npm run build" and commit it`);
    process.exit(1);
  }
} else {
  await mkdir(out, { recursive: true });
  for (const { path, text } of files) {
    await writeFile(path, text);
    console.log(`${basename(path)} ${(text.length / 1000).toFixed(1)} kB`);
  }
}
