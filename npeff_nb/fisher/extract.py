"""The loop over the examples: from a model and its inputs to :class:`~npeff_nb.fisher.pefs.PEFs`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from npeff_nb.fisher._inputs import LogitsOf, ReadyBatches, TextBatches, as_table, examples_table, hugging_face_logits
from npeff_nb.fisher.cache_key import cache_key
from npeff_nb.fisher.completeness import check_complete
from npeff_nb.fisher.features import FeatureMap
from npeff_nb.fisher.gradients import Tape, small_grams
from npeff_nb.fisher.parameters import choose_parameters
from npeff_nb.fisher.pefs import PEFs
from npeff_nb.fisher.store import Store
from npeff_nb.fisher.subject import Subject, check_ready, fingerprint

_TINY = np.finfo(float).tiny


def extract_fishers(
    model: nn.Module,
    tokenizer: Any = None,
    examples: Any = None,
    *,
    features: str = "auto",
    parameters: str | list[str] = "default",
    like: Any = None,
    batch_size: int | None = None,
    progress: bool = True,
    cache: str | os.PathLike | None = None,
    logits: LogitsOf | None = None,
    inputs: Any = None,
    seed: int = 0,
) -> PEFs:
    """Per-example Fishers of a model's predictions, F_i = Σ_y p(y|x_i) ∇log p(y|x_i) ∇log p(y|x_i)ᵀ.

    The expectation over the model's own distribution is exact, in c − 1 factor rows an example (:mod:`npeff_nb.fisher.factors`); one
    backward pass a row serves a whole batch.

    Parameters
    ----------
    model : a Hugging Face sequence classifier, or any ``torch.nn.Module`` with ``logits=``.  It stays where and as it is, bit for bit,
        also after an error or Ctrl-C.
    tokenizer : of the model; not needed with ``inputs=``.
    examples : list of texts, DataFrame or ``datasets.Dataset`` with a column ``text`` (and ``text_pair``); every other column is kept.
    features : where gradients are kept (:mod:`npeff_nb.fisher.features`): ``"dense"``, ``"sketch"``, or ``"auto"``: dense up to 20 000 parameters.
    parameters : which take part (:func:`~npeff_nb.fisher.parameters.choose_parameters`).
    like : PEFs or a fitted NPEFF; the new examples get the same parameters and coordinates, so that ``transform`` accepts them.
    batch_size : examples a batch; by default about a thousand tokens.
    progress : show a progress bar.
    cache : a folder; the result is kept there and found again by model, examples and settings.
    logits : function (model, batch) -> (n, c) tensor, for a model whose output is not a sequence classifier's.
    inputs : tensor (n, ...) or dict of tensors for a model without a tokenizer; ``examples`` may then be a DataFrame of the same length.
    seed : of the random sketch.

    Raises
    ------
    ValueError
        Empty or malformed examples, a model in training mode, fewer than two classes, logits or gradients that are not finite.
    UnsupportedModule
        A parameter that takes part belongs to a layer without a rule.
    """
    check_ready(model)
    if inputs is not None:
        batches: TextBatches | ReadyBatches = ReadyBatches(inputs, batch_size)
        table = pd.DataFrame(index=range(len(batches))) if examples is None else as_table(examples)
        if len(table) != len(batches):
            raise ValueError(f"examples has {len(table)} rows for {len(batches)} inputs")
        if not len(batches):
            raise ValueError("inputs is empty: there is no per-example Fisher without an example")
    else:
        if tokenizer is None or examples is None:
            missing = "tokenizer" if tokenizer is None else "examples"
            raise TypeError(f"extract_fishers needs {missing}= (or inputs= for a model without a tokenizer)")
        table = examples_table(examples)
        batches = TextBatches(model, tokenizer, table, batch_size)

    chosen = choose_parameters(model, parameters) if like is None else _parameters_like(model, like)
    feature_map = FeatureMap.choose(features, chosen, seed) if like is None else like.feature_map
    subject = Subject(model, batches, logits or hugging_face_logits, tokenizer if inputs is None else None)
    facts = {
        "model": str(getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__),
        "model_fingerprint": fingerprint(model),
        "parameters": parameters if like is None else "like",
        "features": feature_map.kind,
        "seed": feature_map.seed,
        "texts_cut": batches.cut,
        "versions": {name: _version(name) for name in ("npeff-nb", "torch", "transformers")},
    }

    place = None
    if cache is not None:
        key = cache_key(facts, table, chosen, feature_map, batches, logits)
        place = Path(cache) / f"{key}.pefs"
        if place.exists():
            found = PEFs.load(place)
            found.subject = subject
            return found

    pefs = _run(subject, table, chosen, feature_map, facts, progress)
    if place is not None:
        pefs.save(place)
    return pefs


def _run(subject: Subject, table: pd.DataFrame, chosen: pd.DataFrame, feature_map: FeatureMap, facts: dict, progress: bool) -> PEFs:
    n, names = len(table), list(chosen["name"])
    tape = Tape(subject.model, names)
    classes = subject.logits(subject.batches.batches()[0][:1]).shape[1]
    check_complete(subject, tape, names)
    store = Store(n, max(classes - 1, 1), feature_map)
    norms, logits = np.zeros(n), np.zeros((n, classes), dtype=np.float32)
    energy = np.zeros(len(names))
    seen: set[str] = set()
    with tqdm(total=n, desc="Fishers", unit="ex", disable=not progress) as bar:
        for part in store.parts:
            for batch in subject.batches.batches(part):
                measured = _measure(subject, tape, names, feature_map, batch)
                logits[batch], norms[batch] = measured.logits, measured.norms
                energy += (measured.traces / np.maximum(measured.traces.sum(0), _TINY)).sum(1)
                seen |= measured.seen
                store.add(batch, measured.features, measured.norms)
                bar.update(len(batch))
            store.end_of_part()

    unused = [name for name in names if name not in seen]
    if len(unused) == len(names):
        raise ValueError(
            f"none of the {len(names)} chosen parameters, {names[0]!r} first, was used by the model's forward pass: choose others with parameters="
        )
    if not norms.any():
        raise ValueError(
            f"all {n} Fishers are zero: the predictions are certain to machine precision, or the chosen parameters do not influence them"
        )
    named = getattr(getattr(subject.model, "config", None), "id2label", None) or {}
    facts = facts | {"energy_kept": store.energy_kept, "unused_parameters": unused}
    described = chosen.assign(energy=energy / max(energy.sum(), _TINY))
    class_names = [str(named.get(c, c)) for c in range(classes)]
    return PEFs(store.factors, norms, logits, table, described, class_names, feature_map, facts, subject)


@dataclass(frozen=True)
class _Measured:
    """What one batch gives; b examples, k factor rows."""

    logits: np.ndarray  # (b, c)
    features: Tensor  # (b, k, width), before the basis
    norms: np.ndarray  # (b,) exact
    traces: np.ndarray  # (parameters, b)
    seen: set[str]  # parameters that the forward pass used


def _measure(subject: Subject, tape: Tape, names: list[str], feature_map: FeatureMap, batch: np.ndarray) -> _Measured:
    place = {name: at for at, name in enumerate(names)}
    traces = np.zeros((len(names), len(batch)))
    seen = set()
    with subject.gradients(tape, batch) as (logits, gradients):
        rows = logits.shape[1] - 1
        features = torch.zeros(len(batch), rows, feature_map.width)
        grams = torch.zeros(len(batch), rows, rows, dtype=torch.float64)
        for name, uses in gradients:
            seen.add(name)
            gram = small_grams(uses).double().cpu()
            grams += gram
            traces[place[name]] = gram.diagonal(dim1=1, dim2=2).sum(-1).numpy()
            features[:, :, feature_map.slot(name)] = feature_map.rows(name, uses).float().cpu()
    _check_finite(grams, batch)
    norms = grams.square().sum((1, 2)).sqrt().numpy()
    if feature_map.kind == "sketch":
        # A sketch is right on average; each example's own Frobenius norm is known exactly, so it is put right.
        found = (features @ features.transpose(1, 2)).double().square().sum((1, 2)).sqrt().numpy()
        right = np.sqrt(np.divide(norms, found, out=np.zeros_like(found), where=found > 0))
        features *= torch.from_numpy(right).float()[:, None, None]
    return _Measured(logits.float().cpu().numpy(), features, norms, traces, seen)


def _check_finite(grams: Tensor, batch: np.ndarray) -> None:
    finite = torch.isfinite(grams).all(2).all(1).tolist()
    if not all(finite):
        raise ValueError(
            f"gradients are not finite for {finite.count(False)} of {len(batch)} examples in one batch, the first being row "
            f"{int(batch[finite.index(False)])}, although its logits are: check the model's weights, or run it in float32"
        )


def _parameters_like(model: nn.Module, like: Any) -> pd.DataFrame:
    there = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if getattr(like, "parameters", None) is None:
        raise ValueError("like= has no parameters: it was fitted on an array (or not at all); give PEFs or an NPEFF fitted on PEFs")
    wanted = like.parameters[["name", "kind", "layer", "shape", "numel"]]
    for name, shape in zip(wanted["name"], wanted["shape"], strict=True):
        if there.get(name) != shape:
            raise ValueError(
                f"like= was extracted over {name!r} of shape {shape}, which this model "
                + (f"has with shape {there[name]}" if name in there else "does not have")
                + ": use the model that like= came from"
            )
    return wanted.reset_index(drop=True)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
