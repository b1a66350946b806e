"""Parts of a direction: they add up to it, and their effects are those of models moved by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.special
import tiny
import torch
import twins

from npeff_nb.directions.lift import norm
from npeff_nb.directions.restrict import N_TOP, restricted, shares_of_effect


@pytest.mark.parametrize(
    ("parameters", "part"),
    [
        ("layer 0", ".layer.0."),
        ("layers 0-1", ".layer."),
        ("MLP in", ".intermediate."),
        ("attention & layers 1", ".layer.1.attention."),
        ("*pooler*", ".pooler."),
        (["pooler", "layer 0"], (".pooler.", ".layer.0.")),
    ],
)
def test_a_part_is_the_direction_s_own_numbers_there(parameters, part, shared, npeff):
    whole = npeff.direction(0)
    found = restricted(whole, parameters, shared.subject.model)
    assert list(found) == [name for name in whole if any(one in name for one in ([part] if isinstance(part, str) else part))]
    assert all(found[name] is whole[name] for name in found)
    assert 0 < norm(found) < 1
    assert found.examples == whole.examples
    # The cosine is measured in the features, which are the parameters here: what it says can be checked, up to the examples left out.
    component = torch.from_numpy(npeff.components_[0])
    ends = np.cumsum([0, *shared.parameters["numel"]])
    parts = {name: component[ends[at] : ends[at + 1]] for at, name in enumerate(shared.parameters["name"])}
    inside = sum(float(value.double().flatten() @ parts[name]) for name, value in found.items())
    assert found.cosine == pytest.approx(inside / norm(found), abs=0.03)


def test_a_part_and_the_rest_add_up(shared, npeff):
    whole, model = npeff.direction(1), shared.subject.model
    part, rest = restricted(whole, "attention & layer 0", model), restricted(whole, "!attention", model)
    also = restricted(whole, "attention & !layer 0", model)
    assert sorted([*part, *rest, *also]) == sorted(whole)
    assert norm(part) ** 2 + norm(rest) ** 2 + norm(also) ** 2 == pytest.approx(1, abs=1e-6)


def test_a_part_that_is_not_there_is_refused(shared, npeff):
    whole, model = npeff.direction(0), shared.subject.model
    with pytest.raises(ValueError, match=r"parameters='layers 7-9' matches none of the model's"):
        restricted(whole, "layers 7-9", model)
    with pytest.raises(ValueError, match=r"parameters='head' keeps none of the 13 parameters that this direction moves, such as 'bert.enc"):
        restricted(whole, "head", model)


def by_hand(shared, whole: dict, names: list[str], strength: float, rows: np.ndarray) -> float:
    """Mean KL of a float64 model some of whose parameters were moved for good, one example at a time."""
    distances = []
    still, moved = tiny.bert().double(), tiny.bert().double()
    with torch.no_grad():
        for name, p in moved.named_parameters():
            if name in names:
                p += strength * whole[name].double()
        for row in rows:
            inputs = tiny.tokenizer()([shared.examples["text"][row]], return_tensors="pt")
            p, q = (scipy.special.softmax(model(**inputs).logits[0].numpy()) for model in (moved, still))
            distances.append(scipy.special.rel_entr(p, q).sum())
    return float(np.mean(distances))


@pytest.mark.parametrize(("by", "parts"), [("layer", ["layer 0", "layer 1", "no layer"]), ("kind", None), ("name", None)])
def test_each_part_alone_and_everything_without_it(by, parts, shared, npeff):
    whole, rows, strength = npeff.direction(0), np.array([3, 8, 1]), -0.6
    before = twins.state(shared.subject.model)
    table = shares_of_effect(npeff, 0, strength, by, rows)
    twins.assert_untouched(shared.subject.model, before)
    assert list(table) == ["part", "parameters", "energy", "kl_alone", "kl_without"]
    assert parts is None or list(table["part"]) == [*parts, "all"]
    kind = shared.parameters.set_index("name")["kind"]
    for row in table.itertuples():
        inside = {
            "all": list(whole), "no layer": [n for n in whole if ".layer." not in n],
            **{f"layer {i}": [n for n in whole if f".layer.{i}." in n] for i in (0, 1)},
        }.get(row.part, [n for n in whole if row.part in (n, kind[n])])  # fmt: skip
        outside = [n for n in whole if n not in inside]
        assert row.parameters == len(inside) > 0
        assert row.energy == pytest.approx(sum(float(whole[n].double().square().sum()) for n in inside), abs=1e-6)
        # float32 logits of a few units: 1e-6 of a logit is 1e-6 times the change of a KL.
        assert row.kl_alone == pytest.approx(by_hand(shared, whole, inside, strength, rows), rel=1e-4, abs=1e-8)
        assert row.kl_without == pytest.approx(by_hand(shared, whole, outside, strength, rows), rel=1e-4, abs=1e-8)
        if row.part not in ("all", "no layer"):
            assert list(restricted(whole, row.part, shared.subject.model)) == inside  # a part's name is one that parameters= understands
    assert table["energy"][:-1].sum() == pytest.approx(table["energy"].iloc[-1]) == pytest.approx(1)
    assert table["kl_without"].iloc[-1] == 0


def test_top_examples_and_the_lifted_direction_are_the_defaults(npeff):
    table = shares_of_effect(npeff, 2, 0.3)
    given = shares_of_effect(npeff, 2, 0.3, rows=npeff.top_examples(2, N_TOP), whole=npeff.direction(2))
    pd.testing.assert_frame_equal(table, given)


def test_a_restricted_direction_can_be_asked_too(shared, npeff):
    part = restricted(npeff.direction(0), "layer 1", shared.subject.model)
    table = shares_of_effect(npeff, 0, -0.6, "kind", whole=part)
    both = shares_of_effect(npeff, 0, -0.6, "layer")
    assert table["kl_alone"].iloc[-1] == both.set_index("part")["kl_alone"]["layer 1"]
    assert table["energy"].iloc[-1] == 1  # shares of what was asked about


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"by": "head"}, "by='head': parts are made by 'layer', 'kind', 'name'"),
        ({"k": 9}, "component 9 does not exist"),
        ({"rows": []}, "component 0 has no example to judge its parts on"),
        ({"strength": float("nan")}, "strength=nan: it must be a finite number"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, words, npeff):
    with pytest.raises(ValueError, match=words):
        shares_of_effect(npeff, **{"k": 0, "strength": 0.3, **arguments})
