/** The examples the person picked, and which components explain each of them. */

/** @import { ExampleDetail } from "./protocol.js" */
/** @import { Context } from "./explorer.js" */
import { button, focused, h } from "./dom.js";
import { chips } from "./example_row.js";
import { coefficient, percent } from "./numbers.js";
import { explainedParts } from "./shares.js";
import { failedLine } from "./status_line.js";
import { toTrace, traces } from "./to_trace.js";
import { visibleText } from "./tokens.js";

/** Parts of the bar with a component of their own; smaller ones could not be hit with a mouse. */
const PARTS = 6;

/** @param {Context} context */
export function pickedExamples({ traits, examples, scope }) {
  const number = h("span", { class: "nx-dim" });
  const list = h("ul", { class: "nx-picked", "aria-label": "picked examples" });
  const clear = button("clear picked examples", "Clear", () => traits.update({ selection: [] }));
  const legend = h("p", { class: "nx-legend" }, "bar: the explained part, divided in proportion to the coefficients · grey: unexplained · click a part to see its component");
  const section = h("section", { class: "nx-bottom", "aria-label": "picked" },
    h("div", { class: "nx-head" }, h("h3", {}, "Picked examples"), number, h("span", { class: "nx-spring" }), clear), list, legend);

  /** Is an example still on its way, or has it failed? */
  let open = false;

  /** @param {ExampleDetail} example */
  function bar(example) {
    const whole = h("div", { class: "nx-stack" });
    explainedParts(example, PARTS).forEach(({ component, share, value }, i) => {
      const told = component === null ? `smaller components: ${percent(share)}`
        : `${visibleText(traits.name(component), 200)}, coefficient ${coefficient(value)}, about ${percent(share)} of this example`;
      const wide = share > 0.045;
      const part = component === null ? h("span", { class: "nx-rest", title: told })
        : button(told, wide ? String(component) : "", () => traits.update({ component }),
          { class: `nx-part ${i % 2 ? "nx-odd" : ""} ${component === traits.component ? "nx-chosen" : ""}` });
      part.style.width = `${100 * share}%`;
      whole.append(part);
    });
    const left = h("span", { class: "nx-unexplained", title: `unexplained ${percent(example.unexplained)}` }, example.unexplained > 0.2 ? `unexplained ${percent(example.unexplained)}` : "");
    whole.append(left);
    return whole;
  }

  /** @param {number} row */
  function item(row) {
    const detail = examples.get(row);
    const trouble = examples.trouble(row);
    const remove = button(`remove example ${row}`, "×", () => traits.toggle(row), { class: "nx-icon" });
    const retry = () => {
      examples.forgive([row]);
      examples.want([row]);
      update();
    };
    if (trouble) return h("li", {}, remove, failedLine(`example ${row}`, trouble, retry));
    if (!detail) return h("li", {}, remove, h("span", { class: "nx-dim" }, `example ${row} …`));
    return h("li", {}, remove,
      h("div", { class: "nx-pickedtext" },
        h("span", { class: "nx-words" }, visibleText(detail.text)),
        h("span", { class: "nx-meta" }, ...chips(detail).nodes.filter((node) => node !== null),
          traces(traits) ? button(`trace example ${row}`, "trace", () => toTrace(traits, row), { class: "nx-icon" }) : null)),
      bar(detail));
  }

  function update() {
    const rows = traits.selection;
    section.hidden = rows.length === 0;
    number.textContent = String(rows.length);
    examples.want(rows);
    open = rows.some((row) => !examples.get(row));
    const held = focused(section)?.getAttribute("aria-label");
    list.replaceChildren(...rows.map(item));
    // the list is made anew; whoever works by keyboard stays where they were, or beside what they removed
    const same = [...list.querySelectorAll("button")].find((candidate) => candidate.getAttribute("aria-label") === held);
    if (held) (same ?? clear).focus({ preventScroll: true });
  }

  traits.onChange(scope, ["selection", "component", "labels"], update);
  examples.changed.on(() => {
    if (open) update(); // hovering the heatmap brings examples too, and they change nothing here
  });
  update();
  return section;
}
