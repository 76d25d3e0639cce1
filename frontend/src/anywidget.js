// The anywidget package is an AMD module; this gives it the `define` that it looks for.
import * as base from "@jupyter-widgets/base";

globalThis.__awdefine = (names, build) => (globalThis.__anywidget = build(base));
