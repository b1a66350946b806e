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
/** @import { Requests } from "./requests.js" */
/** @import { PanelName } from "./protocol.js" */
/** @import { Panel } from "./tabs.js" */
import { componentList } from "./component_list.js";
import { h } from "./dom.js";
import { componentMap } from "./component_map.js";
import { componentTable } from "./component_table.js";
import { createEffect } from "./effect.js";
import { createExampleStore } from "./example_store.js";
import { topExamples } from "./examples.js";
import { createFocus } from "./focus.js";
import { header } from "./header.js";
import { heatmap } from "./heatmap.js";
import { lab } from "./lab.js";
import { layerMap } from "./layer_map.js";
import { ownText } from "./own_text.js";
import { pickedExamples } from "./picked.js";
import { predictions } from "./predictions.js";
import { createRequests } from "./requests.js";
import { onWidth } from "./resize.js";
import { createScope } from "./scope.js";
import { tabs } from "./tabs.js";
import { createTheme } from "./theme.js";
import { tracePanel } from "./trace.js";
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
 * @property {Requests} requests
 * @property {Theme} theme
 * @property {Scope} scope
 */

/** @type {Record<PanelName, Panel>} */
const PANELS = {
  components: { name: "Components", title: "one component: its examples, where it lives, what turning it does", make: components },
  table: { name: "Table", title: "all components in figures", make: componentTable },
  heatmap: { name: "Heatmap", title: "all examples by components", make: heatmap },
  map: { name: "Map", title: "components by the angles between their directions", make: componentMap },
  lab: { name: "Lab", title: "turn several components and see what follows", make: lab },
  text: { name: "My text", title: "which components a text of your own uses", make: ownText },
  examples: { name: "Examples", title: "the examples of one component", make: topExamples },
  layers: { name: "Layers", title: "where in the network one component lives", make: layerMap },
  trace: { name: "Trace", title: "where in the network the edit enters and how it reaches the prediction", make: tracePanel },
};

/** The three columns. @param {Context} context */
function components(context) {
  const { focus } = context;
  const columns = h("div", { class: "nx-columns" });
  // while a detail is on its way the columns keep their height: nothing below may jump under the mouse. This
  // listens before the parts do, so it still sees the height of what was there.
  focus.changed.on(() => {
    columns.style.minHeight = focus.state.status === "loading" ? `${columns.offsetHeight}px` : "";
  });
  columns.append(
    componentList(context), topExamples(context),
    h("div", { class: "nx-right" }, layerMap(context), turnIt(context), predictions(context)),
  );
  return columns;
}

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
    const view = createView(traits, requests, built);
    const focus = createFocus(traits, requests, built);
    const effect = createEffect(traits, focus, requests, built);
    const examples = createExampleStore(requests);
    /** @type {Context} */
    const context = { traits, view, focus, effect, examples, requests, theme, scope: built };
    const { bar, body, show } = tabs(context, PANELS);
    root.replaceChildren(header(context, bar), body, pickedExamples(context));
    show();
    // CSS variables can be read only once the root is in the page, which may be after render
    onWidth(root, built, theme.refresh);
    theme.refresh();
    focus.load();
  }

  traits.onChange(scope, ["overview", "panels"], build);
  build();
  el.append(root);
  return () => {
    scope.dispose();
    root.remove();
  };
}

export default { render };
