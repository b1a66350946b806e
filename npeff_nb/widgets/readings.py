"""Answers about single texts: examples of a band, words coloured otherwise, the person's own text, the trace of an example.

What runs the model does so alone with it and changes nothing about it (:func:`npeff_nb.fisher.subject.alone_with`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from npeff_nb.explain.enriched import alike, sample
from npeff_nb.fisher.predictions import predictions_of, probabilities, probability_of_prediction

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from npeff_nb.directions.trace import Trace
    from npeff_nb.fisher.batches import TextBatches
    from npeff_nb.fisher.subject import Subject
    from npeff_nb.widgets.desk import Desk, Tell

AT_ONCE = 8
"""Examples whose tokens are split between two looks at whether the person still wants them."""
MOST_ROWS = 128
"""Examples that one question may have split over tokens."""
STRONGEST = 3
"""Components whose tokens are shown in a text of one's own."""
NEIGHBOURS = 8
BETWEEN = "|||"
"""Stands between the two texts of a pair."""
WEAKEST, MOST_EDGES = 0.01, 400
"""Edges of a trace that are sent: at least this share of the strongest one of a class, and so many of each class."""
MODES = ("share", "sensitivity")


def band(desk: Desk, content: dict[str, Any], tell: Tell) -> list[dict[str, Any]]:
    """BandSample: some examples whose coefficients lie in one band."""
    k = desk.npeff.check_component(content["component"])
    profile = desk.npeff.profiles.get(k)
    rows = sample(desk.npeff.coefficients_[:, k], content["band"], seed=k)
    return [desk.bundle.row(int(row), k, profile) for row in rows]


# ---------------------------------------------------------------------------------------------------------------------- tokens


def tokens(desk: Desk, content: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Coloured: what the tokens of some examples do for a component."""
    from npeff_nb.directions.lift import subject_of

    k, n = desk.npeff.check_component(content["component"]), len(desk.npeff.coefficients_)
    rows = [row for row in dict.fromkeys(content["rows"]) if isinstance(row, int) and 0 <= row < n][:MOST_ROWS]
    subject = subject_of(desk.npeff)
    _batches(subject)
    tell(0, len(rows), "finding the component's direction among the weights")
    found = []
    direction = desk.direction(k) if rows else {}
    for at in range(0, len(rows), AT_ONCE):
        tell(at, len(rows), "splitting coefficients over tokens" if content["mode"] == "share" else "asking what each token would change")
        found += coloured(subject, direction, np.array(rows[at : at + AT_ONCE]), content["mode"], bool(content["pieces"]))
    return {"rows": found}


def coloured(subject: Subject, direction: Mapping[str, Tensor], rows: np.ndarray, mode: str, pieces: bool) -> list[dict[str, Any]]:
    """[{"row", "tokens", "aside"}] in the order of ``rows``.

    Parameters
    ----------
    mode : ``"share"``: signed parts of the coefficient, which add up to 1 with what stands aside; ``"sensitivity"``: the length of the response's
        gradient by each word's embedding, the largest of a text being 1.
    pieces : tokens as the tokenizer has them instead of words.
    """
    from npeff_nb.explain.sensitivity import input_sensitivity
    from npeff_nb.explain.tokens import token_shares, words_of_example

    if mode not in MODES:
        raise ValueError(f"tokens {mode!r} are not known; choose one of {', '.join(map(repr, MODES))}")
    share = mode == "share"
    of_all = token_shares(subject, direction, rows) if share else input_sensitivity(subject, direction, rows, signed=False)
    found = []
    for row in map(int, rows):
        values, rest = of_all[row]
        # A word's gradient is as long as those of its pieces together.
        spoken, asides = words_of_example(subject, row, values, rest, power=1 if share else 2, joined=not pieces)
        if not share:
            largest = max((one["share"] for one in [*spoken, *asides]), default=0.0) or 1.0
            for one in [*spoken, *asides]:
                one["share"] = (one["share"] / largest) ** 0.5
        found.append({"row": row} | _rounded(spoken, asides))
    return found


def _rounded(spoken: list[dict[str, Any]], asides: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: [one | {"share": round(one["share"], 5)} for one in some] for name, some in (("tokens", spoken), ("aside", asides))}


def _batches(subject: Subject) -> TextBatches:
    from npeff_nb.fisher.batches import TextBatches

    if not isinstance(subject.batches, TextBatches) or subject.tokenizer is None:
        raise ValueError("this decomposition's examples are no texts with a tokenizer: they have no tokens to show")
    return subject.batches


# ---------------------------------------------------------------------------------------------------------------------- one's own text


def text(desk: Desk, content: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """TextAnswer: the person's own text through the model and the decomposition; its tokens come last, as directions may have to be found first.

    Raises
    ------
    ValueError
        There is no model, no text, or one that the model cannot read as a whole or has no Fisher for.
    """
    from npeff_nb.directions.lift import subject_of
    from npeff_nb.fisher.extract import extract_fishers

    npeff, asked = desk.npeff, content["text"]
    subject = subject_of(npeff)
    table = _own(subject, asked)
    if subject.recipe.fisher == "empirical":
        raise ValueError("these Fishers are of the examples' own labels (fisher='empirical'), and a text of yours has none")
    tell(0, STRONGEST + 1, "reading the text")
    found = extract_fishers(subject.model, subject.tokenizer, table, like=npeff, progress=False)
    W, B, G, _ = npeff._coefficients(found)
    w, explained = W[0], float((W * (2 * B - W @ G)).sum())
    largest = [int(j) for j in np.argsort(-w, kind="stable") if w[j] > 0]
    rows, cosines = alike(npeff.coefficients_, w, NEIGHBOURS)
    predictions = predictions_of(found)
    assert predictions is not None and found.subject is not None, "they were extracted just now"
    answer: dict[str, Any] = {
        "text": asked,
        "prediction": str(predictions[0]),
        "probability": round(float(probability_of_prediction(found)[0]), 5),
        "probabilities": np.round(probabilities(found.logits, npeff.family)[0], 5).tolist(),
        "coefficients": [{"component": j, "value": round(float(w[j]), 5)} for j in largest],
        "unexplained": round(float(np.clip(1 - explained, 0, 1)), 5),
        "tokens": {},
        "neighbours": [
            desk.bundle.row(int(row), largest[0]) | {"coefficient": round(float(cosine), 5)} for row, cosine in zip(rows, cosines, strict=True)
        ],
    }
    for at, k in enumerate(largest[:STRONGEST]):
        tell(1 + at, 1 + len(largest[:STRONGEST]), f"which words component {k} hears", answer)
        (one,) = coloured(found.subject, desk.direction(k), np.array([0]), "share", bool(content.get("pieces")))
        answer = answer | {"tokens": answer["tokens"] | {str(k): {"tokens": one["tokens"], "aside": one["aside"]}}}
    return answer


def _own(subject: Subject, asked: Any) -> pd.DataFrame:
    """The person's text as a table of one example."""
    from npeff_nb.fisher.batches import longest_input

    batches = _batches(subject)
    texts = _texts(asked, batches.pairs is not None)
    table = pd.DataFrame([dict(zip(("text", "text_pair"), texts, strict=False))])
    made, _ = subject.output.prepare(subject.model, subject.tokenizer, table, 1, quiet=True)
    if len(made) != 1:
        raise ValueError(f"this text makes {len(made)} examples, one for each word or position: look at one of those that were decomposed")
    if made.cut:
        raise ValueError(f"this text is longer than the {longest_input(subject.model, subject.tokenizer)} tokens that the model reads: shorten it")
    return table


def _texts(asked: Any, pairs: bool) -> tuple[str, ...]:
    if not isinstance(asked, str) or not asked.strip():
        raise ValueError("there is no text yet: type one first")
    if not pairs:
        return (asked,)
    first, between, second = (part.strip() for part in asked.partition(BETWEEN))
    if not (first and between and second):
        raise ValueError(f"the examples are pairs of texts: type both, with {BETWEEN} between them")
    return first, second


# ---------------------------------------------------------------------------------------------------------------------- a trace


def trace(desk: Desk, content: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """TraceAnswer: one example, or the person's own text, traced through the network."""
    from npeff_nb.directions.lift import subject_of
    from npeff_nb.directions.trace import trace_direction

    k, row = desk.npeff.check_component(content["component"]), content["row"]
    subject = subject_of(desk.npeff)
    batches = _batches(subject)
    example: Any = row
    if row == -1:
        _own(subject, content["text"])
        texts = _texts(content["text"], batches.pairs is not None)
        example = texts[0] if len(texts) == 1 else texts
    tell(0, 2, "finding the component's direction among the weights")
    direction = desk.direction(k)
    tell(1, 2, "following the edit through the network")
    return {"component": k} | as_picture(trace_direction(subject, direction, example))


def as_picture(found: Trace) -> dict[str, Any]:
    """A trace's edges between points (token, height), as :mod:`npeff_nb.widgets.trace_figure` places them: heads together, norms with what they
    belong to.

    Token −1 is no position: as an end the logits, as a start what a head has that sees none.
    """
    table, top = found.table, 2 * found.n_layers
    part = table["module"].astype(str).str.removesuffix(" norm")
    layer, source, target = (table[name].astype("float").fillna(-1).astype(int).to_numpy() for name in ("layer", "source", "target"))
    inside = [part == "embedding", part == "attention", part == "MLP"]
    places = pd.DataFrame({
        "kind": table["kind"].astype(str), "module": part, "layer": layer,
        "source": source, "below": np.select(inside, [-1, 2 * layer, 2 * layer + 1], top),
        "target": target, "above": np.select(inside, [0, 2 * layer + 1, 2 * layer + 2], top + 1),
    })  # fmt: skip
    number = places.groupby(list(places), sort=False).ngroup().to_numpy()
    first = np.unique(number, return_index=True)[1]
    values = np.zeros((len(first), len(found.classes)))
    np.add.at(values, number, table[found.classes].to_numpy(dtype=float))
    edges = places.iloc[first]

    size = np.abs(values)
    share = size / np.maximum(size.max(0), np.finfo(float).tiny)
    rank = np.argsort(np.argsort(-share, axis=0, kind="stable"), axis=0)
    sent = np.flatnonzero(((share >= WEAKEST) & (rank < MOST_EDGES)).any(1))
    sent = sent[np.argsort(-share[sent].max(1), kind="stable")]
    enters = (edges["kind"] == "introduced").to_numpy()
    heights = edges["above"].to_numpy()
    return {
        "tokens": found.tokens,
        "classes": found.classes,
        "logits": _numbers(found.logits),
        "derivative": _numbers(found.derivative),
        "layers": found.n_layers,
        "edges": [
            {"kind": kind, "module": module, "layer": int(at), "from": [int(s), int(below)], "to": [int(t), int(above)], "values": _numbers(of_one)}
            for (kind, module, at, s, below, t, above), of_one in zip(edges.iloc[sent].itertuples(index=False), values[sent], strict=True)
        ],
        "introduced": [
            {"height": int(height), "values": _numbers(values[enters & (heights == height)].sum(0))} for height in np.unique(heights[enters])
        ],
    }


def _numbers(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
