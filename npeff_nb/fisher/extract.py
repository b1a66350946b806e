"""The loop over the examples: from a model and its inputs to :class:`~npeff_nb.fisher.pefs.PEFs`."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from npeff_nb.fisher._inputs import LogitsOf, ReadyBatches, TextBatches, examples_table, hugging_face_logits
from npeff_nb.fisher.features import FeatureMap, principal_basis
from npeff_nb.fisher.gradients import Tape, small_grams
from npeff_nb.fisher.parameters import choose_parameters
from npeff_nb.fisher.pefs import PEFs
from npeff_nb.fisher.subject import Subject, check_ready, fingerprint

PILOT_BYTES = 512 * 2**20
"""Unreduced sketches held at once while the principal directions are found; memory does not grow with n beyond it."""
PILOT_SEED = 0


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
        batches = ReadyBatches(inputs, batch_size)
        table = pd.DataFrame(index=range(len(batches))) if examples is None else examples.reset_index(drop=True)
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
    subject = Subject(model, batches, logits or hugging_face_logits, tokenizer)
    facts = {
        "model": str(getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__),
        "model_fingerprint": fingerprint(model),
        "parameters": parameters if like is None else "like",
        "versions": {name: _version(name) for name in ("npeff-nb", "torch", "transformers")},
    }

    place = None
    if cache is not None:
        key = _cache_key(facts, table, chosen, feature_map, inputs)
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
    n = len(table)
    names = list(chosen["name"])
    tape = Tape(subject.model, names)
    first = subject.batches.batches()[0][:1]
    rows = subject.logits(first).shape[1] - 1
    width = feature_map.width

    # Sketches are reduced as they come once the principal directions are known; a random first part of the examples tells which they are.
    searching = feature_map.kind == "sketch" and feature_map.basis is None
    if searching:
        pilot_size = min(n, max(64, PILOT_BYTES // (4 * max(1, rows) * width)))
        pilot = np.sort(np.random.default_rng(PILOT_SEED).permutation(n)[:pilot_size])
        parts = [pilot, np.setdiff1d(np.arange(n), pilot)]
        held = torch.empty(pilot_size, rows, width)
    else:
        parts = [np.arange(n)]

    out: np.ndarray | None = None
    norms, logits_out = np.zeros(n), None
    energy, kept, trace = np.zeros(len(names)), 0.0, 0.0
    seen: set[str] = set()

    def keep(where: np.ndarray, features: Tensor) -> None:
        nonlocal out, kept, trace
        before = features.double().square().sum((1, 2))
        if feature_map.basis is not None:
            features = features @ basis
        after = features.double().square().sum((1, 2))
        scale = np.where(norms[where] > 0, 1 / np.maximum(norms[where], np.finfo(float).tiny), 0.0)
        kept += float((after.numpy() * scale).sum())
        trace += float((before.numpy() * scale).sum())
        out = np.zeros((n, rows, features.shape[-1]), dtype=np.float32) if out is None else out
        out[where] = features.numpy()

    basis = None if feature_map.basis is None else torch.from_numpy(feature_map.basis)
    with tqdm(total=n, desc="Fishers", unit="ex", disable=not progress) as bar:
        for part_number, part in enumerate(parts):
            for batch in subject.batches.batches(part):
                logits, gradients = subject.gradients(tape, batch)
                features = torch.zeros(len(batch), rows, width)
                grams = torch.zeros(len(batch), rows, rows, dtype=torch.float64)
                traces = np.zeros((len(names), len(batch)))
                for name, uses in gradients:
                    seen.add(name)
                    gram = small_grams(uses).double().cpu()
                    grams += gram
                    traces[names.index(name)] = gram.diagonal(dim1=1, dim2=2).sum(-1).numpy()
                    features[:, :, feature_map.slot(name)] = feature_map.rows(name, uses).float().cpu()
                _check_finite(grams, batch)
                logits_out = np.zeros((n, logits.shape[1]), dtype=np.float32) if logits_out is None else logits_out
                logits_out[batch] = logits.float().cpu().numpy()
                norms[batch] = grams.square().sum((1, 2)).sqrt().numpy()
                energy += (traces / np.maximum(traces.sum(0), np.finfo(float).tiny)).sum(1)
                if feature_map.kind == "sketch":
                    # A sketch is right on average; each example's own Frobenius norm is known exactly, so it is put right.
                    found = (features @ features.transpose(1, 2)).double().square().sum((1, 2)).sqrt().numpy()
                    right = np.sqrt(np.divide(norms[batch], found, out=np.zeros_like(found), where=found > 0))
                    features *= torch.from_numpy(right).float()[:, None, None]
                if searching and part_number == 0:
                    held[np.searchsorted(pilot, batch)] = features
                else:
                    keep(batch, features)
                bar.update(len(batch))
            if searching and part_number == 0:
                # Each example's Fisher counts as one of unit norm. Scaled in place and back: a copy would double the peak.
                unit = torch.from_numpy(np.sqrt(np.where(norms[pilot] > 0, norms[pilot], 1.0))).float()[:, None, None]
                basis = principal_basis(held.div_(unit).flatten(0, 1))
                held.mul_(unit)
                feature_map.basis = basis.numpy()
                for at in range(0, len(pilot), 256):
                    keep(pilot[at : at + 256], held[at : at + 256])
                del held

    unused = [name for name in names if name not in seen]
    if len(unused) == len(names):
        raise ValueError(
            f"none of the {len(names)} chosen parameters, {names[0]!r} first, was used by the model's forward pass: choose others with parameters="
        )
    if not norms.any():
        raise ValueError(
            f"all {n} Fishers are zero: the predictions are certain to machine precision, or the chosen parameters do not influence them"
        )
    config = getattr(subject.model, "config", None)
    named = getattr(config, "id2label", None) or {}
    classes = [str(named.get(c, c)) for c in range(logits_out.shape[1])]
    facts = facts | {"energy_kept": kept / trace if trace else 1.0, "unused_parameters": unused}
    described = chosen.assign(energy=energy / max(energy.sum(), np.finfo(float).tiny))
    return PEFs(out, norms, logits_out, table, described, classes, feature_map, facts, subject)


def _check_finite(grams: Tensor, batch: np.ndarray) -> None:
    finite = torch.isfinite(grams).all(2).all(1).tolist()
    if not all(finite):
        raise ValueError(
            f"gradients are not finite for {finite.count(False)} of {len(batch)} examples in one batch, the first being row "
            f"{int(batch[finite.index(False)])}, although its logits are: check the model's weights, or run it in float32"
        )


def _parameters_like(model: nn.Module, like: Any) -> pd.DataFrame:
    there = {name: tuple(p.shape) for name, p in model.named_parameters()}
    wanted = like.parameters[["name", "kind", "layer", "shape", "numel"]]
    for name, shape in zip(wanted["name"], wanted["shape"], strict=True):
        if there.get(name) != shape:
            raise ValueError(
                f"like= was extracted over {name!r} of shape {shape}, which this model "
                + (f"has with shape {there[name]}" if name in there else "does not have")
                + ": use the model that like= came from"
            )
    return wanted.reset_index(drop=True)


def _cache_key(facts: dict, table: pd.DataFrame, chosen: pd.DataFrame, feature_map: FeatureMap, inputs: Any) -> str:
    digest = hashlib.sha256(json.dumps([facts, list(chosen["name"]), feature_map.id], sort_keys=True, default=str).encode())
    digest.update(table.to_json(orient="split").encode())
    for tensor in inputs.values() if isinstance(inputs, dict) else [inputs] if inputs is not None else []:
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:24]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
