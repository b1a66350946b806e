"""npeff_nb: see which strategies a neural network uses, in a notebook.

NPEFF (Matena and Raffel, arXiv 2310.04649) factors the Fisher matrices of single examples into a few shared rank-1 components.  Names are
found on first use, so that ``import npeff_nb`` is quick and saved results open on machines without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "load_demo": "npeff_nb.demo.model",
    "extract_fishers": "npeff_nb.fisher.extract",
    "parameter_energy": "npeff_nb.fisher.extract",
    "outputs": "npeff_nb.fisher.outputs",
    "PEFs": "npeff_nb.fisher.pefs",
    "NPEFF": "npeff_nb.npeff",
    "DNPEFF": "npeff_nb.decomposition.diagonal",
    "choose_n_components": "npeff_nb.decomposition.components_count",
    "stability": "npeff_nb.decomposition.stability",
    "match": "npeff_nb.decomposition.matching",
    "redundancy": "npeff_nb.decomposition.redundancy",
    "null_fishers": "npeff_nb.decomposition.null",
    "explained_by_chance": "npeff_nb.decomposition.null",
    "perturb": "npeff_nb.directions.perturb",
    "sweeps": "npeff_nb.directions.sweeps",
    "repair": "npeff_nb.directions.repair",
    "explore": "npeff_nb.widgets.explorer",
    "compare": "npeff_nb.widgets.compare",
    "ComponentTable": "npeff_nb.widgets.panels",
    "CoefficientHeatmap": "npeff_nb.widgets.panels",
    "ComponentMap": "npeff_nb.widgets.panels",
    "TopExamples": "npeff_nb.widgets.panels",
    "ParameterMap": "npeff_nb.widgets.panels",
    "PerturbationLab": "npeff_nb.widgets.panels",
    "OwnText": "npeff_nb.widgets.panels",
    "TraceView": "npeff_nb.widgets.panels",
    "load": "npeff_nb._load",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"npeff_nb has no {name!r}; it has {', '.join(sorted(_PUBLIC))}")
    try:
        module = import_module(_PUBLIC[name])
        value = module if name in {"outputs", "sweeps"} else getattr(module, name)
    except ModuleNotFoundError as error:
        if error.name in {"torch", "transformers"}:
            raise ImportError(f'nb.{name} runs models and needs torch and transformers: pip install "npeff-nb[torch]"') from error
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
