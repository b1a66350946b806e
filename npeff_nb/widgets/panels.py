"""The explorer's parts, each as a widget of its own.

They take what :func:`~npeff_nb.widgets.explorer.explore` takes and have the same traits, so that several on a page, or in an ``ipywidgets`` layout,
are linked by ``traitlets.link((a, "component"), (b, "component"))``.
"""

from __future__ import annotations

from typing import ClassVar

from npeff_nb.widgets.explorer import Explorer


class ComponentTable(Explorer):
    """All components in figures: sortable, searchable, with stars."""

    PARTS: ClassVar[tuple[str, ...]] = ("table",)


class CoefficientHeatmap(Explorer):
    """All examples by components."""

    PARTS: ClassVar[tuple[str, ...]] = ("heatmap",)


class ComponentMap(Explorer):
    """Components as points, near each other where their directions are alike."""

    PARTS: ClassVar[tuple[str, ...]] = ("map",)


class TopExamples(Explorer):
    """One component's examples, with the words that carry it."""

    PARTS: ClassVar[tuple[str, ...]] = ("examples",)


class ParameterMap(Explorer):
    """Where in the network one component lives: layers by kinds of matrix."""

    PARTS: ClassVar[tuple[str, ...]] = ("layers",)


class PerturbationLab(Explorer):
    """The model moved along one or several components, and what follows for its predictions."""

    PARTS: ClassVar[tuple[str, ...]] = ("lab",)


class OwnText(Explorer):
    """Which components a text of one's own uses."""

    PARTS: ClassVar[tuple[str, ...]] = ("text",)


class TraceView(Explorer):
    """Where in the network an edit enters, and how it reaches the prediction of one example."""

    PARTS: ClassVar[tuple[str, ...]] = ("trace",)
