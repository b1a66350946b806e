/**
 * The widget's entry: anywidget calls `render` for every view of a model. What Python and the page say to each other
 * stands in protocol.d.ts; each part of the picture has a module of its own and talks to the others through `Context`.
 */

/** @import { AnyModel } from "@anywidget/types" */
/** @import { Scope } from "./scope.js" */
/** @import { Traits } from "./traits.js" */
/** @import { View } from "./view.js" */
/** @import { Focus } from "./focus.js" */
/** @import { Effect } from "./effect.js" */
/** @import { ExampleStore } from "./example_store.js" */
/** @import { Theme } from "./theme.js" */
import { componentList } from "./component_list.js";
import { h } from "./dom.js";
import { createEffect } from "./effect.js";
import { createExampleStore } from "./example_store.js";
import { topExamples } from "./examples.js";
import { createFocus } from "./focus.js";
import { header } from "./header.js";
import { heatmap } from "./heatmap.js";
import { layerMap } from "./layer_map.js";
import { pickedExamples } from "./picked.js";
import { predictions } from "./predictions.js";
import { createRequests } from "./requests.js";
import { onWidth } from "./resize.js";
import { createScope } from "./scope.js";
import { createTheme } from "./theme.js";
import { createTraits } from "./traits.js";
import { turnIt } from "./turn.js";
import { createView } from "./view.js";

/**
 * @typedef {object} Context what every part gets
 * @property {Traits} traits
 * @property {View} view
 * @property {Focus} focus
 * @property {Effect} effect
 * @property {ExampleStore} examples
 * @property {Theme} theme
 * @property {Scope} scope
 */

/** @param {{ model: AnyModel<any>, el: HTMLElement }} place */
function render({ model, el }) {
  const scope = createScope();
  const traits = createTraits(model);
  const root = h("div", { class: "npeff-explorer", "data-lm-suppress-shortcuts": "true" });
  // notebooks have shortcuts on plain letters; what is typed in here is not meant for them
  for (const type of ["keydown", "keypress", "keyup"]) root.addEventListener(type, (event) => event.stopPropagation());

  let built = scope.child();
  function build() {
    built.dispose();
    built = scope.child();
    const theme = createTheme(root, traits, built);
    if (!traits.overview) {
      root.replaceChildren(h("p", { class: "nx-empty" }, "Nothing to show yet: this explorer has no components."));
      theme.refresh();
      return;
    }
    const requests = createRequests(model, built);
    const view = createView(traits, built);
    const focus = createFocus(traits, requests, built);
    const effect = createEffect(traits, focus, requests, built);
    const examples = createExampleStore(requests);
    /** @type {Context} */
    const context = { traits, view, focus, effect, examples, theme, scope: built };
    const columns = h("div", { class: "nx-columns" });
    // while a detail is on its way the columns keep their height: the heatmap below must not jump under the mouse. This
    // listens before the parts do, so it still sees the height of what was there.
    focus.changed.on(() => {
      columns.style.minHeight = focus.state.status === "loading" ? `${columns.offsetHeight}px` : "";
    });
    columns.append(
      componentList(context), topExamples(context),
      h("div", { class: "nx-right" }, layerMap(context), turnIt(context), predictions(context)),
    );
    root.replaceChildren(
      header(context),
      columns,
      heatmap(context),
      pickedExamples(context),
    );
    // CSS variables can be read only once the root is in the page, which may be after render
    onWidth(root, built, theme.refresh);
    theme.refresh();
    focus.load();
  }

  traits.onChange(scope, ["overview"], build);
  build();
  el.append(root);
  return () => {
    scope.dispose();
    root.remove();
  };
}

export default { render };
