"""From a model and its inputs to :class:`~npeff_nb.fisher.pefs.PEFs`: what is asked, how, and where it is kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from npeff_nb import _files
from npeff_nb._progress import Progress
from npeff_nb.fisher import landmarks, provenance
from npeff_nb.fisher.batches import Batches, ReadyBatches, as_table
from npeff_nb.fisher.completeness import tape_for
from npeff_nb.fisher.factors import FISHERS, Recipe, Sampled
from npeff_nb.fisher.features import FeatureMap, Size
from npeff_nb.fisher.loop import Result, positions_a_batch, run
from npeff_nb.fisher.measure import Measure
from npeff_nb.fisher.outputs import Output, Own, output_for
from npeff_nb.fisher.parameters import choose_parameters
from npeff_nb.fisher.pefs import PEFs
from npeff_nb.fisher.predictions import FIRST_GUESS, REST
from npeff_nb.fisher.reattach import output_again
from npeff_nb.fisher.shelf import Folder, Memory, Shelf
from npeff_nb.fisher.subject import Subject, check_ready
from npeff_nb.fisher.workers import Workers

LogitsOf = Callable[[nn.Module, Any], Tensor]
_TINY = np.finfo(float).tiny


def extract_fishers(
    model: nn.Module,
    tokenizer: Any = None,
    examples: Any = None,
    *,
    output: Output | None = None,
    fisher: str = "true",
    classes: str | float | Sampled = "auto",
    rank: float | int | None = None,
    features: str = "auto",
    budget: int | None = None,
    exact_norms: bool = True,
    parameters: str | list[str] = "default",
    scale: dict[str, float] | None = None,
    diagonal: bool | int = False,
    like: Any = None,
    batch_size: int | None = None,
    progress: bool | Progress = True,
    cache: str | os.PathLike | None = None,
    on_nan: str = "raise",
    logits: LogitsOf | None = None,
    inputs: Any = None,
    seed: int = 0,
) -> PEFs:
    """Per-example Fishers of a model's predictions, F_i = Σ_y p(y|x_i) ∇log p(y|x_i) ∇log p(y|x_i)ᵀ.

    The expectation over the model's own distribution is exact, in c − 1 factor rows an example (:mod:`npeff_nb.fisher.factors`); one
    backward pass a row serves a whole batch.

    Parameters
    ----------
    model : a Hugging Face model, or any ``torch.nn.Module`` with ``logits=``.  It stays where and as it is, bit for bit, also after an error or
        Ctrl-C.
    tokenizer : of the model, or its image processor; not needed with ``inputs=``.
    examples : list of texts, DataFrame or ``datasets.Dataset`` with a column ``text`` (and ``text_pair``; ``image`` for images); other columns are
        kept.
    output : what the model is asked to predict (:mod:`npeff_nb.fisher.outputs`): label words, the next token, ...; by default what it was made for.
    fisher : ``"true"``; ``"empirical"``, the gradient for the gold label in column ``label`` alone; ``"predicted"``, for the predicted label alone.
    classes : of a prediction over many: ``"all"``; how many of the likeliest to keep apart; the least probability to keep; :class:`Sampled` for an
        unbiased estimate; ``"auto"`` is all up to 33, else 8.  :meth:`PEFs.to_frame` says what share of each Fisher's trace that retains.
    rank : rows an example after rotation onto its own principal axes, or the share of its trace that they carry.
    features : where gradients are kept (:mod:`npeff_nb.fisher.features`): ``"dense"``, ``"sketch"``, ``"reduced"``, ``"gram"``, ``"topk"``, or
        ``"auto"``, by predicted cost; ``facts["features_why"]`` says why.
    budget : width of the sketch before its principal components, landmark rows of the reduction, or entries an example of topk.
    exact_norms : False takes norms, traces and energies from the sketch itself, right on average: about a sixth faster.
    parameters, scale : which take part, and factors on the gradients of some (:func:`~npeff_nb.fisher.parameters.choose_parameters`).
    diagonal : also the data set's diagonal Fisher; a number also keeps so many largest entries of each example's own.
    like : PEFs or a fitted NPEFF; the new examples get the same parameters, question and coordinates, so that ``transform`` accepts them.
    batch_size : examples a batch; by default a few hundred tokens, on an accelerator as many as make it faster.  Halved when memory runs out.
    progress : show a progress bar, or a function (done, total, what), which may raise :class:`npeff_nb._progress.Cancelled`.
    cache : a folder; the result is kept there and found again by model, examples and settings.  A run that was stopped goes on from there.
    on_nan : ``"raise"`` names the first example whose numbers are not finite; ``"mask"`` gives such examples zero Fishers and the column ``masked``.
    logits : function (model, batch) -> (n, c) tensor, for a model whose output is none of the known.
    inputs : tensor (n, ...) or dict of tensors for a model without a tokenizer; ``examples`` may then be a DataFrame of the same length.
    seed : of the random sketch and the choice of landmarks.

    Raises
    ------
    ValueError
        Empty or malformed examples, a model in training mode, a regression head, fewer than two classes, numbers that are not finite.
    UnsupportedModule
        A parameter that takes part is used in a way that cannot be followed.
    """
    check_ready(model)
    _check(fisher, on_nan, diagonal, rank)
    if features == "topk" and rank is not None:
        raise ValueError("features='topk' keeps entries of the paper's own rows and rank= turns rows: choose one of them")
    asked, recipe = _question(model, output, logits, fisher, rank, like)
    batches, table = _examples(model, tokenizer, examples, inputs, asked, batch_size)
    chosen = choose_parameters(model, parameters, scale) if like is None else _parameters_like(model, like)
    subject = Subject(model, batches, asked, recipe, tokenizer if inputs is None else None)
    before = getattr(like, "subject", None)
    if before is not None and before.asks_like(subject) and before.batches.batch_size != 1:
        subject.tapes = before.tapes  # what was learned about batches of this very model and question holds
    c = _classes(subject)
    if like is None:
        recipe = replace(recipe, rows="classes" if features == "topk" and recipe.family == "categorical" and fisher == "true" else "reduced")
        recipe = recipe.for_classes(classes, c)
    elif recipe.top is not None:
        recipe = replace(recipe, top=min(recipe.top, c))
    subject.recipe = recipe
    if recipe.fisher == "empirical":
        subject.gold = _gold(table, asked.class_names(model, c) if not asked.vocabulary else [], c, recipe, tokenizer)
    k = recipe.n_rows(c)
    size = Size(len(batches), k, float(batches.lengths.mean()))
    feature_map = FeatureMap.choose(features, chosen, seed, size, budget) if like is None else _map_like(like)
    facts: dict[str, Any] = {
        "model": str(getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__),
        "fingerprints": provenance.fingerprints(model),
        "tokenizer": provenance.tokenizer_facts(tokenizer),
        "output": asked.facts(),
        "recipe": recipe.to_json(),
        "parameters": parameters if like is None else "like",
        "features": feature_map.kind,
        "features_why": feature_map.why,
        "exact_norms": exact_norms or feature_map.kind != "sketch",
        "diagonal": diagonal,
        "on_nan": on_nan,
        "seed": feature_map.seed,
        "texts_cut": batches.cut,
        "versions": provenance.versions(),
    }
    facts["model_fingerprint"] = provenance.fingerprint(facts["fingerprints"])

    workers = Workers.here()
    if workers.number > 1 and cache is None:
        raise ValueError(f"{workers.number} processes work together through a folder: give cache=")
    place = None
    if cache is not None:
        key = provenance.extraction_key(facts, table, chosen, feature_map.id, batches, asked)
        place = Path(cache) / f"{key}.pefs"
    if place is not None and place.exists() and workers.leads and place.with_suffix(".partial").exists():
        Folder(place.with_suffix(".partial")).remove()  # a run was killed between its last two steps
    if place is None or not place.exists():
        shelf: Shelf = Memory() if place is None else Folder(place.with_suffix(".partial"))
        if isinstance(shelf, Folder) and workers.leads:
            shelf.lock()
        try:
            pefs, file = _extract(subject, table, chosen, feature_map, facts, k, c, shelf, workers, progress, diagonal, on_nan)
            if place is None:
                return pefs
            if workers.leads:
                _files.sweep(place)
                pefs.save(place, file)
        finally:
            if isinstance(shelf, Folder):
                shelf.unlock()
        workers.wait()
        if workers.leads and isinstance(shelf, Folder):
            shelf.remove()
    assert place is not None, "what was not kept was returned"
    found = PEFs.load(place)
    subject.choices = found.choices
    subject.recipe = Recipe.from_json(found.facts["recipe"])
    found.subject = subject
    return found


def parameter_energy(model: nn.Module, tokenizer: Any = None, examples: Any = None, *, sample: int = 64, **options: Any) -> pd.DataFrame:
    """Who owns the gradient energy, over *all* parameters: the first thing to look at, before ``parameters=`` is chosen.

    Parameters
    ----------
    sample : examples that are looked at, drawn at random.
    options : as for :func:`extract_fishers` (``output=``, ``inputs=``, ``fisher=``, ...).

    Returns
    -------
    ``layer``, ``kind``, ``share`` of the trace of the average unit-trace Fisher, ``numel``; largest share first.
    """
    rng = np.random.default_rng(0)
    if options.get("inputs") is not None:
        inputs = options.pop("inputs")
        rows = np.sort(rng.permutation(len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs))[:sample])
        at = torch.from_numpy(rows)
        options["inputs"] = {key: value[at] for key, value in inputs.items()} if isinstance(inputs, dict) else inputs[at]
        examples = None if examples is None else as_table(examples).iloc[rows]
    else:
        table = as_table(examples)
        examples = table.iloc[np.sort(rng.permutation(len(table))[:sample])]
    # The smallest sketch there is: only the exact traces are looked at.
    asked: dict[str, Any] = {"progress": False, "parameters": "all", "features": "sketch", "budget": 1} | options
    return extract_fishers(model, tokenizer, examples, **asked).parameter_energy()


# ------------------------------------------------------------------------------------------------------------------------ the question


def _check(fisher: str, on_nan: str, diagonal: bool | int, rank: float | int | None) -> None:
    if fisher not in FISHERS:
        raise ValueError(f"fisher={fisher!r} is not known; choose one of {', '.join(map(repr, FISHERS))}")
    if on_nan not in {"raise", "mask"}:
        raise ValueError(f"on_nan={on_nan!r}: choose 'raise' (name the example and stop) or 'mask' (give it a zero Fisher)")
    if isinstance(diagonal, int) and diagonal < 0:
        raise ValueError(f"diagonal={diagonal}: give True, False, or how many entries of each example's diagonal to keep")
    whole = isinstance(rank, (int, np.integer)) and not isinstance(rank, bool) and rank >= 1
    share = isinstance(rank, float) and 0 < rank <= 1
    if rank is not None and not whole and not share:
        raise ValueError(f"rank={rank!r}: give how many rows to keep (from 1), or the share of the trace that they carry (above 0, up to 1.0)")


def _question(
    model: nn.Module, output: Output | None, logits: LogitsOf | None, fisher: str, rank: float | int | None, like: Any
) -> tuple[Output, Recipe]:
    if output is not None and logits is not None:
        raise TypeError("output= and logits= both say how predictions are read off the model: give one of them")
    if logits is not None:
        asked: Output = Own(logits)
    elif output is not None:
        asked = output
    elif like is not None:
        live = getattr(like, "subject", None)
        asked = live.output if live is not None else output_again(getattr(like, "facts", {}))
    else:
        asked = output_for(model)
    if like is None:
        return asked, Recipe(asked.family, fisher, rank=None if rank is None else (int(rank) if isinstance(rank, (int, np.integer)) else float(rank)))
    recipe = Recipe.from_json(like.facts["recipe"]) if "recipe" in getattr(like, "facts", {}) else Recipe(asked.family)
    return asked, recipe


def _examples(model: nn.Module, tokenizer: Any, examples: Any, inputs: Any, asked: Output, batch_size: int | None) -> tuple[Batches, pd.DataFrame]:
    if inputs is not None:
        batches = ReadyBatches(inputs, batch_size)
        table = pd.DataFrame(index=range(len(batches))) if examples is None else as_table(examples)
        if len(table) != len(batches):
            raise ValueError(f"examples has {len(table)} rows for {len(batches)} inputs")
        return batches, table
    if tokenizer is None or examples is None:
        missing = "tokenizer" if tokenizer is None else "examples"
        raise TypeError(f"extract_fishers needs {missing}= (or inputs= for a model without a tokenizer)")
    return asked.prepare(model, tokenizer, examples, batch_size)


def _classes(subject: Subject) -> int:
    """Classes of the model's own prediction, by running its shortest example."""
    with torch.no_grad():
        return subject.raw_logits(subject.batches.batches()[-1][-1:]).shape[1]


def _gold(table: pd.DataFrame, names: list[str], c: int, recipe: Recipe, tokenizer: Any) -> np.ndarray:
    """The column ``label`` as class numbers (n,), or as 0/1 (n, c) for independent labels."""
    if "label" not in table.columns:
        raise ValueError("fisher='empirical' takes the gradient for the gold label: the examples need a column 'label'")
    values = table["label"].tolist()
    number = {name: i for i, name in enumerate(names)}

    def one(value: Any, row: int) -> int:
        if isinstance(value, str) and value in number:
            return number[value]
        if isinstance(value, str) and not names and hasattr(tokenizer, "convert_tokens_to_ids"):
            ids = tokenizer(value, add_special_tokens=False)["input_ids"]
            if ids:
                return int(ids[0])
        if isinstance(value, (int, np.integer, float)) and value == value and 0 <= int(value) < c and int(value) == value:
            return int(value)
        raise ValueError(
            f"row {row} has the label {value!r}, which is none of the model's {c} classes ({', '.join(names[:8]) or 'tokens'}), "
            f"nor a number below {c}"
        )

    if recipe.family == "categorical":
        return np.array([one(value, row) for row, value in enumerate(values)], dtype=np.int32)
    found = np.zeros((len(values), c), dtype=np.int32)
    for row, value in enumerate(values):
        several = list(value) if isinstance(value, (list, tuple, set, np.ndarray)) else [value]
        if len(several) == c and set(several) <= {0, 1}:
            found[row] = np.asarray(several, dtype=np.int32)
        else:
            found[row, [one(v, row) for v in several]] = 1
    return found


def _parameters_like(model: nn.Module, like: Any) -> pd.DataFrame:
    there = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if getattr(like, "parameters", None) is None:
        raise ValueError("like= has no parameters: it was fitted on an array (or not at all); give PEFs or an NPEFF fitted on PEFs")
    wanted = like.parameters[["name", "kind", "layer", "shape", "numel", "scale"]]
    for name, shape in zip(wanted["name"], wanted["shape"], strict=True):
        if there.get(name) != shape:
            raise ValueError(
                f"like= was extracted over {name!r} of shape {shape}, which this model "
                + (f"has with shape {there[name]}" if name in there else "does not have")
                + ": use the model that like= came from"
            )
    return wanted.reset_index(drop=True)


def _map_like(like: Any) -> FeatureMap:
    if like.feature_map.kind == "topk":
        raise ValueError("like= was extracted with features='topk', whose coordinates are those of its own examples: extract all examples together")
    return like.feature_map


# ------------------------------------------------------------------------------------------------------------------------ the run


def _extract(
    subject: Subject,
    table: pd.DataFrame,
    chosen: pd.DataFrame,
    feature_map: FeatureMap,
    facts: dict[str, Any],
    k: int,
    c: int,
    shelf: Shelf,
    workers: Workers,
    progress: bool | Progress,
    diagonal: bool | int,
    on_nan: str,
) -> tuple[PEFs, Path | None]:
    names = list(chosen["name"])
    tape = tape_for(subject, names)
    entries = 0 if isinstance(diagonal, bool) else diagonal
    measure = Measure(names, list(chosen["scale"]), feature_map, k, None, bool(diagonal), min(entries, int(chosen["numel"].sum())), on_nan == "mask",
                      facts["exact_norms"])  # fmt: skip
    if subject.batches.batch_size is None:
        plan = {"positions": 0}
        if workers.leads:
            plan = {"positions": positions_a_batch(subject, tape, _without_landmarks(measure))}
            plan = shelf.plan(plan) if isinstance(shelf, Folder) else plan
        workers.wait()
        subject.batches.positions = (plan if workers.leads or not isinstance(shelf, Folder) else shelf.plan())["positions"]
    if feature_map.kind in {"reduced", "gram"}:
        if not feature_map.landmarks:
            where = landmarks.choose_landmarks(len(subject.batches), k, feature_map.rows, feature_map.seed)
            feature_map.landmarks = landmarks.record(subject, _decided(subject, where), where)
        measure.landmarks = landmarks.gather(subject, tape, feature_map, dict(zip(names, chosen["scale"], strict=True)), k)
        if feature_map.basis is None:
            # Kept with the shards: eigenvectors may come out otherwise elsewhere, and all shards have to be in the same coordinates.
            if workers.leads and shelf.get("basis") is None:
                shelf.clear()  # whatever is there stands in coordinates that are gone
                shelf.put("basis", {"basis": landmarks.mixed(measure.landmarks, exact=feature_map.kind == "gram")})
            workers.wait()
            known = shelf.get("basis")
            assert known is not None, "the first worker has put it there"
            feature_map.basis = known["basis"]
    result = run(subject, tape, measure, shelf, workers, progress)
    if not workers.leads:
        return None, None  # type: ignore[return-value]
    return _as_pefs(subject, table, chosen, feature_map, facts, c, result)


def _without_landmarks(measure: Measure) -> Measure:
    """For trying batch sizes before any landmark is there: as if sketched."""
    if measure.feature_map.kind not in {"reduced", "gram"}:
        return measure
    stand_in = replace(measure.feature_map, kind="sketch", side=16, landmarks={}, basis=None)
    return Measure(measure.names, measure.scales, stand_in, measure.k, mask_bad=measure.mask_bad)


def _decided(subject: Subject, where: np.ndarray) -> dict[str, np.ndarray]:
    """What is decided for some examples before the run comes to them."""
    found: dict[str, np.ndarray] = {}
    place = {int(row): at for at, row in enumerate(where)}
    for batch in subject.batches.batches(where):
        with torch.no_grad():
            z = torch.nan_to_num(subject.raw_logits(batch))
        for key, value in subject.recipe.decide(z, batch, None if subject.gold is None else subject.gold[batch]).items():
            own = found.setdefault(key, np.zeros((len(where), *value.shape[1:]), value.dtype))
            own[[place[int(row)] for row in batch]] = value
    return found


def _as_pefs(
    subject: Subject, table: pd.DataFrame, chosen: pd.DataFrame, feature_map: FeatureMap, facts: dict[str, Any], c: int, result: Result
) -> tuple[PEFs, Path | None]:
    each, sums, names = result.each, result.sums, list(chosen["name"])
    n, norms = len(table), each["norms"]
    unused = [name for name, seen in zip(names, sums["seen"], strict=True) if not seen]
    if len(unused) == len(names):
        raise ValueError(
            f"none of the {len(names)} chosen parameters, {names[0]!r} first, was used by the model's forward pass: choose others with parameters="
        )
    bad = each["bad"].astype(bool)
    if not norms.any():
        raise ValueError(
            f"all {n} Fishers are zero: the predictions are certain to machine precision, or the chosen parameters do not influence them"
            + (f" ({int(bad.sum())} were masked because their numbers were not finite)" if bad.any() else "")
        )
    choices = _files.under("choice", each)
    full = each["traces"] * each["retained_rows"]
    columns = pd.DataFrame({"kept": np.divide(each["kept"], full, out=np.ones(n), where=full > 0)})
    recipe = subject.recipe
    if recipe.top is not None and not recipe.draws:
        columns["retained_trace"] = each["retained"]
    if recipe.rank is not None:
        columns["retained_rows"] = each["retained_rows"]
    if recipe.draws:
        columns["sampling_error"] = each["sampling_error"]
    if bad.any():
        columns["masked"] = bad
    kept, there = float(sums["kept"].sum()), float(sums["there"].sum())
    facts = facts | {"energy_kept": kept / there if there else 1.0, "unused_parameters": unused}
    if feature_map.kind in {"dense", "reduced", "gram"}:
        # What the unit-norm rows have outside the span bounds every inner product of two of them.
        outside = np.divide(np.clip(full - each["kept"], 0, None), norms, out=np.zeros(n), where=norms > 0)
        facts["inner_product_bound"] = float(outside.max())
    class_names = subject.output.class_names(subject.model, c) if not subject.output.vocabulary else []
    if "outcomes" in choices:
        codes = sorted({int(code) for code in np.unique(choices["outcomes"]) if code >= 0})
        facts["outcome_names"] = {str(code): _name(subject, class_names, code) for code in codes}
        class_names = (
            [FIRST_GUESS] + [f"guess {at + 1}" for at in range(1, choices["outcomes"].shape[1])] + ([REST] if recipe.family == "categorical" else [])
        )
    elif not class_names:
        class_names = [_name(subject, [], code) for code in range(c)]
    energy = sums["energy"] / max(sums["energy"].sum(), _TINY)
    subject.choices = choices
    file = result.factors if isinstance(result.factors, Path) else None
    pefs = PEFs(
        np.zeros((n, 0, 0), np.float32) if file else result.factors, norms, each["logits"], table, chosen.assign(energy=energy), class_names,  # type: ignore[arg-type]
        feature_map, facts, subject, each["traces"], choices, columns, result.sparse,
        (sums["diagonal"] / n).astype(np.float32) if len(sums["diagonal"]) else None, result.diagonals,
    )  # fmt: skip
    return pefs, file


def _name(subject: Subject, class_names: list[str], code: int) -> str:
    """A class's name; a token's as it is read, with its leading space."""
    if class_names:
        return class_names[code]
    tokenizer = subject.tokenizer
    return tokenizer.decode([code]) or str(code) if tokenizer is not None else str(code)
