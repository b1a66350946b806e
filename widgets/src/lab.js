/** The perturbation lab: several components turned at once, and what follows for the examples of one of them. */

/** @import { Context } from "./explorer.js" */
/** @import { StrengthSlider } from "./slider.js" */
import { button, h } from "./dom.js";
import { klPlot } from "./kl_plot.js";
import { labelOf } from "./listing.js";
import { count, nats, percent, ratio } from "./numbers.js";
import { bar, classTable } from "./predictions.js";
import { provenance, trustWords } from "./provenance.js";
import { onWidth } from "./resize.js";
import { written } from "./slide.js";
import { strengthSlider } from "./slider.js";
import { absent, statusPlace } from "./status_line.js";
import { visibleText } from "./tokens.js";
import { whyNot } from "./turn.js";

/** Sliders: the kernel keeps as many directions, each as large as the parameters that took part. */
const MOST = 4;
/** Examples that are shown of either set. */
const SHOWN = 16;
const LONGEST = 2000;
/** Characters of a name in a line. */
const SHORT = 60;
const HEIGHT = 170;

/** @param {string} name of a component or a class */
const short = (name) => visibleText(name).slice(0, SHORT);

/** @param {Context} context */
export function lab(context) {
  const { theme, scope, effect, traits, focus } = context;
  const sliders = labSliders(context);
  const came = provenance(context);
  const status = statusPlace();
  const plot = h("div", { class: "nx-plot" });
  const band = h("span");
  const legend = h(
    "p", { class: "nx-legend" }, "KL from the original in nats, √ scale, of the component in focus alone · ", h("b", { class: "nx-hot" }, "its top examples"), " · ",
    h("b", { class: "nx-cold" }, "others"), " · grey dashes: top examples under a random direction of equal norm · dots: runs · dotted: preview only", band,
  );
  const sets = [exampleSet(context, "top"), exampleSet(context, "baseline")];
  const signs = signTable(context);
  const body = h("div", {}, h("div", { class: "nx-labsets" }, ...sets.map((set) => set.element)), signs.element);
  let width = 480;

  function update() {
    const { state } = focus;
    const what = `component ${traits.component}`;
    if (state.status === "loading") status.waiting(what, state.progress, focus.cancel);
    else if (state.status === "failed") status.failed(what, state.message, focus.load);
    else if (state.status === "cancelled") status.cancelled(what, focus.load);
    else status.clear();
    sliders.update();
    came.update();
    const { shown } = effect;
    legend.hidden = body.hidden = !shown;
    band.textContent = effect.trusted ? ` · ${trustWords(effect)}` : "";
    plot.replaceChildren(shown ? klPlot(effect, theme.colours, width, HEIGHT) : absent(whyNot(context, false)));
    if (!shown) return;
    for (const set of sets) set.update();
    signs.update();
  }

  // a focus that changes makes the effect change too
  effect.changed.on(update);
  context.examples.changed.on(() => sets.forEach((set) => set.update()));
  theme.changed.on(update);
  traits.onChange(scope, ["labels"], update);
  onWidth(plot, scope, (available) => {
    width = available;
    update();
  });
  update();

  return h(
    "section", { class: "nx-lab", "aria-label": "perturbation lab" },
    h("div", { class: "nx-labtop" }, sliders.element, h("div", { class: "nx-labplot" }, status.element, plot, ...came.elements, legend)),
    body,
  );
}

/** The sliders: the component in focus first, which can be chosen here, then those that were added. @param {Context} context */
function labSliders({ traits, effect }) {
  const list = h("ul", { class: "nx-labsliders" });
  const add = h("select", { "aria-label": "turn another component too" });
  const reset = button("reset all strengths to 0", "Reset all", () => effect.reset());
  const note = h("p", { class: "nx-legend" });
  /** @type {Map<number, StrengthSlider>} */
  let sliders = new Map();
  let drawn = "";

  /** @param {HTMLSelectElement} select @param {number[]} without @param {string | null} first */
  function fill(select, without, first) {
    const components = traits.overview?.components ?? [];
    select.replaceChildren(
      ...(first === null ? [] : [h("option", { value: "" }, first)]),
      ...components.filter(({ component }) => !without.includes(component))
        .map((summary) => h("option", { value: summary.component }, `${summary.component} · ${short(labelOf(summary, traits.labels))}`)),
    );
  }

  add.addEventListener("change", () => {
    const component = Number(add.value);
    if (add.value !== "") traits.update({ others: { ...traits.get("others"), [component]: 0 } });
  });

  /** @param {number} component */
  function row(component) {
    const inFocus = component === traits.component;
    const name = inFocus ? "strength" : `strength of component ${component}`;
    const slider = strengthSlider(effect.range, name, {
      drag: (strength) => effect.drag(strength, component),
      commit: (strength) => effect.commit(strength, component),
    });
    sliders.set(component, slider);
    let title;
    if (inFocus) {
      title = h("select", { class: "nx-labfocus", "aria-label": "component in focus, whose examples are judged" });
      fill(title, [], null);
      title.value = String(component);
      const select = title;
      title.addEventListener("change", () => traits.update({ component: Number(select.value) }));
    } else {
      title = button(`put component ${component} in focus`, `${component} · ${short(traits.label(component))}`, () => {
        // the two change places, with their strengths
        const { [String(component)]: own, ...others } = traits.get("others");
        traits.update({ component, strength: own, others: { ...others, [traits.component]: traits.strength } });
      }, { class: "nx-icon nx-labname" });
    }
    const remove = inFocus ? null : button(`remove component ${component}`, "×", () => {
      effect.remove(component);
      add.focus({ preventScroll: true });
    }, { class: "nx-icon" });
    return h("li", { "data-component": component }, h("div", { class: "nx-labslider" }, title, h("span", { class: "nx-spring" }), slider.box, remove), slider.element);
  }

  return {
    element: h("div", { class: "nx-lableft" }, h("div", { class: "nx-head nx-turnhead" }, h("h3", {}, "Turn"), h("span", { class: "nx-spring" }), reset), list, add, note),
    update() {
      const strengths = effect.strengths;
      const now = JSON.stringify([[...strengths.keys()], traits.labels]);
      if (now !== drawn) {
        // what is dragged stays where it is: rows are made anew only when there are others
        drawn = now;
        sliders = new Map();
        list.replaceChildren(...[...strengths.keys()].map(row));
        fill(add, [...strengths.keys()], "+ turn another component too");
        add.disabled = strengths.size >= MOST;
        note.textContent = strengths.size >= MOST ? `at most ${MOST} at once` : "";
      }
      for (const [component, strength] of strengths) {
        sliders.get(component)?.show(strength, !effect.ready, component === traits.component ? effect.trusted : null);
      }
      reset.disabled = [...strengths.values()].every((strength) => strength === 0);
    },
  };
}

/** Means by class and single examples of one set. @param {Context} context @param {"top" | "baseline"} set */
function exampleSet(context, set) {
  const { effect, focus, examples } = context;
  const [hue, name] = set === "top" ? ["nx-hot", "Top examples"] : ["nx-cold", "Others"];
  const table = classTable(context, set === "top" ? "mean_top" : "mean_baseline", `${name.toLowerCase()}: mean probabilities before and after`);
  const title = h("h3", {}, name);
  const more = h("p", { class: "nx-legend" });
  const list = h("ul", { class: "nx-labexamples", tabindex: 0, role: "list", "aria-label": `${name.toLowerCase()} before and after` });
  /** @type {{ row: number, text: HTMLElement, change: HTMLElement, bars: HTMLElement }[]} */
  let rows = [];
  let drawn = "";

  /** @returns {number[]} top examples by coefficient; of the others a sample from all over the table */
  function choose() {
    const { judge, sweep } = effect;
    if (!judge) return set === "top" ? (sweep?.rows ?? []) : [];
    const { n_top, n_baseline } = judge;
    if (set === "top") return judge.rows.slice(0, Math.min(n_top, SHOWN));
    const some = Math.min(n_baseline, SHOWN);
    return Array.from({ length: some }, (_, i) => judge.rows[n_top + Math.floor(((i + 0.5) * n_baseline) / some)]);
  }

  /** @param {number} row */
  const textOf = (row) => focus.detail?.top.find((one) => one.row === row)?.text ?? examples.get(row)?.text ?? examples.trouble(row) ?? "…";

  return {
    element: h("section", { class: "nx-labset", "aria-label": name.toLowerCase() }, title, table.element, more, list),
    update() {
      const { shown, judge, sweep } = effect;
      if (!shown) return;
      const { before, after } = shown;
      const all = set === "top" ? (judge ?? sweep)?.n_top ?? 0 : (judge ?? sweep)?.n_baseline ?? 0;
      const flips = set === "top" ? after.flips_top : after.flips_baseline;
      title.textContent = `${name} · ${count(all)}${flips === null || shown.source === "original" ? "" : ` · ${count(flips * all)} changed (${percent(flips)})`}`;
      const left = table.update();
      const chosen = choose();
      more.textContent = left === null ? (set === "baseline" ? "Of others only the KL was kept for this component." : "")
        : `means, before → after${left ? ` · ${left} less likely ${left === 1 ? "class" : "classes"} left out` : ""}${chosen.length < all ? ` · below: ${set === "top" ? `the first ${chosen.length}` : `${chosen.length} from all over the table`}` : ""}`;
      if (drawn !== chosen.join(" ")) {
        drawn = chosen.join(" ");
        rows = chosen.map((row) => ({ row, text: h("span", { class: "nx-labtext" }), change: h("span", { class: "nx-labchange" }), bars: h("span", { class: "nx-labbars", "aria-hidden": "true" }) }));
        list.replaceChildren(...rows.map(({ text, change, bars }) => h("li", {}, text, bars, change)));
        list.hidden = rows.length === 0;
        list.scrollTop = 0;
        examples.want(chosen.filter((row) => !focus.detail?.top.some((one) => one.row === row)));
      }
      for (const { row, text, change, bars } of rows) {
        const said = visibleText(textOf(row));
        const cut = said.length > LONGEST ? `${said.slice(0, LONGEST)}…` : said;
        if (text.textContent !== cut) {
          text.textContent = cut;
          text.title = cut;
        }
        const [p, q] = [before.of(row), after.of(row)];
        if (!p) {
          change.textContent = "–";
          continue;
        }
        const was = effect.said(p);
        const is = q && effect.said(q);
        const moved = is !== undefined && is.name !== was.name;
        change.replaceChildren(`${short(was.name)} ${percent(was.probability)}`, " → ", is ? h(moved ? "b" : "span", { class: moved ? hue : "" }, `${short(is.name)} ${percent(is.probability)}`) : "–");
        // of the class that was predicted
        const at = p.indexOf(Math.max(...p));
        bars.replaceChildren(bar(p[at], "nx-dimbar"), bar(q?.[at], hue));
      }
    },
  };
}

/** Both signs side by side, where the model was run. @param {Context} context */
function signTable({ effect }) {
  const table = h("table", { class: "nx-signs" });
  const element = h(
    "details", { class: "nx-labsigns", open: true }, h("summary", {}, "Both signs, where the model was run"),
    h("div", { class: "nx-scroll", tabindex: 0, role: "group", "aria-label": "both signs" }, table),
  );
  /** @type {unknown} */
  let drawn = null;
  return {
    element,
    update() {
      const { signs, sweep } = effect;
      element.hidden = signs.length === 0;
      if (drawn === sweep || signs.length === 0) return;
      drawn = sweep;
      const heads = ["KL top", "KL others", "ratio", "changed top", "changed others"];
      table.replaceChildren(
        h("thead", {},
          h("tr", {}, h("td"), h("th", { colspan: heads.length, scope: "colgroup" }, "turned down (−)"), h("th", { colspan: heads.length, scope: "colgroup" }, "turned up (+)")),
          h("tr", {}, h("th", { scope: "col" }, "strength"), ...[...heads, ...heads].map((head) => h("th", { scope: "col" }, head)))),
        h("tbody", {}, ...signs.map(({ strength, down, up }) => h("tr", {}, h("th", { scope: "row" }, written(strength, effect.range).replace("+", "")),
          ...[down, up].flatMap((one) => (one ? [nats(one.kl_top), nats(one.kl_baseline), ratio(one.kl_top, one.kl_baseline),
            one.flips_top === null ? "–" : percent(one.flips_top), one.flips_baseline === null ? "–" : percent(one.flips_baseline)] : heads.map(() => "–"))
            .map((cell) => h("td", {}, cell)))))),
      );
    },
  };
}
