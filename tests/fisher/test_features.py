"""Where gradients are kept, against the gradients themselves: certified reductions, exact Grams, sketches, largest entries, diagonals."""

from __future__ import annotations

import itertools
import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import twins
from torch import nn

import npeff_nb as nb
from npeff_nb import NPEFF
from npeff_nb.fisher import features as features_module
from npeff_nb.fisher import landmarks as landmarks_module
from npeff_nb.fisher import layers
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.factors import Sampled
from npeff_nb.fisher.features import FeatureMap, Size
from npeff_nb.fisher.gradients import UnsupportedModule
from npeff_nb.fisher.layers import Outer, Whole, cross_grams, small_grams
from npeff_nb.fisher.outputs import MultiLabel, SequenceClasses
from npeff_nb.fisher.parameters import choose_parameters

FLOAT32 = 1e-5
"""As in the tests of extraction: rows are made in float32 through a few layers' worth of sums."""
GRAM = 1e-4
"""Inner products from inner products: float32 roundings, magnified where directions of a millionth of the energy are kept."""

# ---------------------------------------------------------------------------------------------------------- inner products of uses


def double(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + seed), dtype=torch.float64)


def use_of(kind: str, n: int, k: int, t: int, out: int, inn: int, seed: int) -> layers.Use:
    """One use of one parameter (out, in) by n examples with k rows and t positions."""
    if kind == "linear":  # the input is shared by the rows
        return Outer(double(n, k, t, out, seed=seed), double(n, 1, t, inn, seed=seed + 1))
    if kind == "transposed":
        return Outer(double(n, 1, t, out, seed=seed), double(n, k, t, inn, seed=seed + 1))
    if kind == "neither shared":
        return Outer(double(n, k, t, out, seed=seed), double(n, k, t, inn, seed=seed + 1))
    if kind == "looked up":
        ids = torch.randint(out, (n, 1, t), generator=torch.Generator().manual_seed(seed))
        return Outer(ids, double(n, k, t, inn, seed=seed), rows=out)
    return Whole(double(n, k, out, inn, seed=seed))


KINDS = ("linear", "transposed", "neither shared", "looked up", "written out")


def written_out(uses: list[layers.Use]) -> torch.Tensor:
    """(n, K, out, in), position by position."""
    total = 0
    for use in uses:
        if isinstance(use, Whole):
            total = total + use.gradient
            continue
        n, k, out, inn = use.shape
        one = torch.zeros(n, k, out, inn, dtype=torch.float64)
        for i, row, t in itertools.product(range(n), range(k), range(use.right.shape[2])):
            right = use.right[i, min(row, use.right.shape[1] - 1), t]
            if use.rows is not None:
                one[i, row, int(use.left[i, 0, t])] += right
            else:
                one[i, row] += torch.outer(use.left[i, min(row, use.left.shape[1] - 1), t], right)
        total = total + one
    return total


SETS = (
    [[kind] for kind in KINDS] + [list(both) for both in itertools.combinations_with_replacement(KINDS, 2)] + [["looked up", "linear", "written out"]]
)
SIZES = [(1, 4, 5), (3, 4, 5), (20, 2, 2), (2, 30, 20)]
"""Positions, out, in: each side of every choice between forming gradients and not forming them."""


@pytest.mark.parametrize(("t", "out", "inn"), SIZES)
@pytest.mark.parametrize("kinds", SETS, ids=" + ".join)
def test_inner_products_of_an_example_s_rows(kinds, t, out, inn):
    for k in (1, 3):
        uses = [use_of(kind, 3, k, t, out, inn, seed=at) for at, kind in enumerate(kinds)]
        rows = written_out(uses).flatten(2)
        torch.testing.assert_close(small_grams(uses), rows @ rows.transpose(1, 2), rtol=1e-12, atol=1e-11)


def test_products_of_positions_are_remembered_for_the_same_input_only():
    """Query, key and value read one input; what comes next reads another, perhaps at the same place in memory."""
    memo: dict = {}
    given = double(3, 1, 4, 30)
    for number in range(6):
        if number % 3 == 0:
            given = double(3, 1, 4, 30, seed=number)
        for use in (Outer(double(3, 2, 4, 20, seed=number), given), Outer(double(3, 2, 4, 20, seed=number), given).scaled(0.5)):
            rows = use.dense().flatten(2)
            torch.testing.assert_close(small_grams([use], memo), rows @ rows.transpose(1, 2), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(("t", "out", "inn"), SIZES[1:])
@pytest.mark.parametrize("others", SETS, ids=" + ".join)
def test_inner_products_with_other_examples_rows(others, t, out, inn):
    """Other examples, in other number, with other numbers of rows and of positions, used in another way."""
    there = [use_of(kind, 4, 2, t + 1, out, inn, seed=9 + at) for at, kind in enumerate(others)]
    right = written_out(there).flatten(2).flatten(0, 1)
    for some in SETS[:: 1 if len(others) == 1 else 4]:
        here = [use_of(kind, 3, 3, t, out, inn, seed=at) for at, kind in enumerate(some)]
        left = written_out(here).flatten(2).flatten(0, 1)
        found = cross_grams(here, there)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, left @ right.T, rtol=1e-12, atol=1e-11)


def test_inner_products_of_biases():
    here = [Outer(double(3, 2, 1, 7), torch.ones(1, 1, 1, 1, dtype=torch.float64).expand(3, 1, 1, 1))]
    there = [Outer(double(5, 3, 1, 7, seed=1), torch.ones(1, 1, 1, 1, dtype=torch.float64).expand(5, 1, 1, 1))]
    left, right = here[0].left[:, :, 0], there[0].left[:, :, 0]
    torch.testing.assert_close(small_grams(here), left @ left.transpose(1, 2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cross_grams(here, there), left.flatten(0, 1) @ right.flatten(0, 1).T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("slab", [1, 50, 130])
def test_slabs_of_inner_products_are_joined_in_order(slab, monkeypatch):
    here, there = [use_of("linear", 5, 2, 3, 4, 5, 0)], [use_of("written out", 7, 3, 1, 4, 5, 1)]
    expected = cross_grams(here, there)
    monkeypatch.setattr(layers, "SLAB", slab)
    torch.testing.assert_close(cross_grams(here, there), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_zeros_are_added_at_the_end(kind):
    use = use_of(kind, 3, 2, 4, 5, 6, 0)
    padded = use.padded(4)
    assert padded.shape == (3, 4, 5, 6)
    torch.testing.assert_close(padded.dense()[:, :2], use.dense())
    assert not padded.dense()[:, 2:].any()
    torch.testing.assert_close(use.scaled(0.5).dense(), 0.5 * use.dense())
    torch.testing.assert_close(use.take(slice(1, 3)).dense(), use.dense()[1:3])


# ---------------------------------------------------------------------------------------------------------- models to reduce


class NoFormulas(nn.Module):
    """A layer of two inputs, and a parameter that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.gain, self.out = nn.Bilinear(6, 6, 5), nn.Parameter(torch.linspace(0.5, 1.5, 5)), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.gain * torch.tanh(self.pair(x, x.flip(1))))


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


MODULES = {
    "convolutions": (tiny.ConvNet, numbers(11, 2, 9, 11)),
    "embedding tied to linear": (tiny.EmbeddingIsAlsoLinear, torch.randint(7, (11, 3), generator=torch.Generator().manual_seed(0))),
    "two modules, one weight": (tiny.TwoLinearsOneWeight, numbers(11, 6)),
    "one module called twice": (tiny.CalledTwice, numbers(11, 6)),
    "no formulas": (NoFormulas, numbers(11, 6)),
}
every_module = pytest.mark.parametrize(("make", "inputs"), MODULES.values(), ids=MODULES.keys())
quiet = pytest.mark.filterwarnings("ignore:no formula for")


def of_module(model, inputs, **settings):
    return extract_fishers(model, logits=tiny.plain_logits, inputs=inputs, parameters="all", **{"batch_size": 4, "progress": False} | settings)


def of_texts(model, texts, **settings):
    return extract_fishers(model, tiny.tokenizer(), texts, **{"parameters": "all", "batch_size": 5, "progress": False} | settings)


def unit_rows(pefs) -> np.ndarray:
    """(n·k, d) float64 factor rows of unit-norm Fishers."""
    scale = np.sqrt(np.where(pefs.norms > 0, pefs.norms, 1))
    return (pefs.factors.astype(np.float64) / scale[:, None, None]).reshape(-1, pefs.factors.shape[2])


def gram(rows: np.ndarray) -> np.ndarray:
    return rows @ rows.T


def assert_same_gram(kept, dense, rel: float = GRAM) -> None:
    """All inner products of unit-norm rows: together, and each by itself."""
    found, exact = gram(unit_rows(kept)), gram(unit_rows(dense))
    assert np.linalg.norm(found - exact) <= rel * np.linalg.norm(exact)
    assert np.abs(found - exact).max() <= rel


def assert_certified(kept, dense) -> None:
    """|⟨a, b⟩ − ⟨z_a, z_b⟩| ≤ ‖a − z_a‖ ‖b − z_b‖ for every pair, with what each row has outside taken from the exact rows."""
    exact, found = unit_rows(dense), unit_rows(kept)
    inside, whole = (found**2).sum(1), (exact**2).sum(1)
    assert (inside <= whole * (1 + GRAM) + 1e-9).all()  # a projection: nothing grows
    outside = np.sqrt(np.clip(whole - inside, 0, None) + GRAM * whole)
    error = np.abs(gram(found) - gram(exact))
    assert (error <= np.outer(outside, outside) * (1 + GRAM)).all()
    assert error.max() <= kept.facts["inner_product_bound"] + GRAM


# ---------------------------------------------------------------------------------------------------------- gram and reduced


@quiet
@pytest.mark.parametrize("features", ["gram", "reduced"])
@every_module
def test_all_rows_as_landmarks_lose_nothing(make, inputs, features):
    model = tiny.seeded(make)
    dense = of_module(model, inputs, features="dense")
    kept = of_module(model, inputs, features=features)
    assert kept.factors.shape[2] <= len(inputs) * kept.factors.shape[1]
    np.testing.assert_allclose(kept.norms, dense.norms, rtol=FLOAT32)
    if features == "gram":
        assert_same_gram(kept, dense)
        assert kept.facts["inner_product_bound"] < 1e-3
        assert kept.facts["energy_kept"] == pytest.approx(1, abs=1e-3)
    else:  # a thousandth of the energy may be left out
        assert_certified(kept, dense)
        assert kept.facts["energy_kept"] > 0.998


@pytest.mark.parametrize("features", ["gram", "reduced"])
def test_all_rows_of_a_transformer_as_landmarks(features, bert, monkeypatch):
    """Embeddings of words, of positions and of kinds, norms and biases included; texts of different lengths."""
    monkeypatch.setattr(landmarks_module, "KEPT_ENERGY", 1.0)
    dense, kept = (of_texts(bert, tiny.table(20), features=f) for f in ("dense", features))
    assert_same_gram(kept, dense)
    np.testing.assert_allclose(kept.traces, dense.traces, rtol=FLOAT32)


@quiet
@pytest.mark.parametrize("rows", [1, 5, 12])
@every_module
def test_some_rows_as_landmarks_are_certified(make, inputs, rows):
    model = tiny.seeded(make)
    dense = of_module(model, inputs, features="dense")
    kept = of_module(model, inputs, features="reduced", budget=rows)
    assert kept.factors.shape[2] <= -(-rows // kept.factors.shape[1]) * kept.factors.shape[1]
    assert_certified(kept, dense)
    assert kept.facts["inner_product_bound"] > 0.01  # something is outside, and said so


@pytest.mark.parametrize("rows", [4, 20])
def test_some_rows_of_a_transformer_as_landmarks(rows, bert):
    dense, kept = of_texts(bert, tiny.table(24), features="dense"), of_texts(bert, tiny.table(24), features="reduced", budget=rows)
    assert kept.feature_map.landmarks["input.input_ids"].shape[0] == rows // 2  # two rows an example
    assert_certified(kept, dense)
    table = kept.to_frame()
    inside = (kept.factors.astype(np.float64) ** 2).sum((1, 2)) / dense.traces
    np.testing.assert_allclose(table["kept"], inside, rtol=1e-4)


def test_coordinates_are_orthonormal_directions_in_parameter_space(bert):
    """The mix of landmark rows gives vectors over the parameters that are orthonormal, and a row's coordinates are its inner products with them."""
    dense, kept = of_texts(bert, tiny.table(24), features="dense"), of_texts(bert, tiny.table(24), features="reduced", budget=20)
    where = landmarks_module.choose_landmarks(24, 2, 20, 0)
    assert len(where) == 10
    directions = kept.feature_map.basis.T @ dense.factors[where].reshape(20, -1).astype(np.float64)
    np.testing.assert_allclose(directions @ directions.T, np.eye(len(directions)), atol=1e-3)  # float32 roundings over the root of a small eigenvalue
    scale = np.abs(kept.factors).max()
    np.testing.assert_allclose(dense.factors.astype(np.float64) @ directions.T, kept.factors, atol=1e-4 * scale)


@pytest.mark.parametrize("settings", [{"classes": 3}, {"classes": 0.1}, {"classes": Sampled(3, 1)}, {"rank": 2}, {"classes": 3, "rank": 0.9},
                                      {"fisher": "predicted"}, {"scale": {"classifier.weight": 0.01}}, {"batch_size": None}])  # fmt: skip
@pytest.mark.parametrize("features", ["gram", "reduced"])
def test_reduced_rows_of_every_recipe(features, settings):
    model = tiny.bert(6)
    dense, kept = of_texts(model, tiny.table(12), features="dense", **settings), of_texts(model, tiny.table(12), features=features, **settings)
    (assert_same_gram if features == "gram" else assert_certified)(kept, dense)


def test_directions_of_unit_norm_fishers_are_preferred(bert):
    """Few of them explain more of unit-norm Fishers than of the longest ones alone."""
    some = of_texts(bert, tiny.table(24), features="reduced", budget=48)
    dense = of_texts(bert, tiny.table(24), features="dense")
    d = some.factors.shape[2]
    values = np.linalg.svd(unit_rows(dense), compute_uv=False) ** 2
    assert some.facts["energy_kept"] == pytest.approx(values[:d].sum() / values.sum(), rel=1e-3)


class AsOneBatch(nn.Module):
    """A table of positions that is looked up once for the whole batch and spread over sixteen copies: examples have to come alone."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.mix, self.out = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.register_buffer("each", torch.eye(4))

    def forward(self, x):
        where = self.places(self.each)  # (4, 6), whatever the batch
        return self.out(torch.tanh(self.mix(x + where)).mean(1))


@pytest.mark.filterwarnings("ignore:some parameters that take part are used once")
@pytest.mark.parametrize("features", ["gram", "reduced"])
def test_landmarks_come_alone_where_examples_do(features):
    model, inputs = tiny.seeded(AsOneBatch), numbers(9, 4, 6)
    dense = of_module(model, inputs, features="dense")
    expected = twins.fisher_rows(model, tiny.plain_logits, inputs[:1], list(dense.parameters["name"]))
    assert twins.relative_distance(dense.factors[0], expected) < FLOAT32
    kept = of_module(model, inputs, features=features)
    (assert_same_gram if features == "gram" else assert_certified)(kept, dense)


@pytest.mark.parametrize("features", ["dense", "gram"])
def test_a_decoder_without_padding(features):
    """Its classifier reads the last token, which beside a longer text would be padding, and refuses several texts at once."""
    model, tokenizer = tiny.gpt2(), tiny.tokenizer()
    model.config.pad_token_id = None
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    kept = extract_fishers(model, tokenizer, tiny.TEXTS, features=features, parameters="all", progress=False)
    alone = [dict(tokenizer([text], return_tensors="pt")) for text in tiny.TEXTS]
    rows = [twins.fisher_rows(model, SequenceClasses().logits, one, list(kept.parameters["name"])) for one in alone]
    np.testing.assert_allclose(kept.norms, [twins.frobenius(of_one) for of_one in rows], rtol=FLOAT32)
    unit = np.stack([of_one / twins.frobenius(of_one) ** 0.5 for of_one in rows])
    found = unit_rows(kept).reshape(8, 2, -1)
    # Two rows where the definition has three: compared as Fishers.
    inner = [np.square(np.einsum("iyd,jzd->ijyz", x, x)).sum((2, 3)) for x in (found, unit)]
    np.testing.assert_allclose(*inner, atol=GRAM)


class Branches(nn.Module):
    """Two ways through, by what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.down, self.out = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.first(x)
        return self.out(torch.tanh(self.up(h) if float(x[:, 0].mean()) > 0 else self.down(h)))


def test_landmarks_of_a_parameter_that_only_some_examples_use():
    inputs = torch.cat([torch.ones(5, 3), -torch.ones(5, 3)]) * torch.linspace(0.5, 1.5, 10)[:, None]
    with pytest.raises(UnsupportedModule, match=r"parameter '(up|down)\.\w+' is used for some examples and not for others: leave it out"):
        of_module(tiny.seeded(Branches), inputs, features="gram", batch_size=1)


# ---------------------------------------------------------------------------------------------------------- like=


def parts_of(kind: str):
    """(model, how to extract, first examples, other examples), for texts and for tensors."""
    if kind == "texts":
        model, table = tiny.bert(), tiny.table(36)
        return model, lambda rows, **s: of_texts(model, table.iloc[rows], **s)
    model, inputs = tiny.seeded(tiny.ConvNet), numbers(36, 2, 9, 11)
    return model, lambda rows, **s: of_module(model, inputs[torch.as_tensor(rows)], **s)


@pytest.mark.parametrize("saved", [False, True], ids=["at once", "after loading"])
@pytest.mark.parametrize("kind", ["texts", "tensors"])
@pytest.mark.parametrize("features", ["reduced", "gram", "dense", "sketch"])
def test_like_gives_others_the_same_coordinates(features, kind, saved, tmp_path):
    _, extract = parts_of(kind)
    old, new = np.arange(20), np.arange(20, 36)
    first = extract(old, features=features, **({"budget": 12} if features == "reduced" else {}))
    like = nb.load(first.save(tmp_path / "first.pefs")) if saved else first
    assert like.feature_map.id == first.feature_map.id
    again = extract(old, like=like)
    scale = np.abs(first.factors).max()
    np.testing.assert_allclose(again.factors, first.factors, rtol=0, atol=1e-6 * scale)
    np.testing.assert_allclose(again.norms, first.norms, rtol=1e-6)
    others = extract(new, like=like, batch_size=3)
    assert others.feature_map.id == first.feature_map.id
    assert others.factors.shape[1:] == first.factors.shape[1:]
    both = nb.PEFs.concatenate([like, others])
    if features == "sketch":
        return
    dense = extract(np.arange(36), features="dense")
    assert_certified(_with_bound(both, others, first), dense)
    if features == "gram":  # old rows lie in the span: their inner products with new ones are exact too
        found, exact = gram(unit_rows(both)), gram(unit_rows(dense))
        old_rows = 20 * first.factors.shape[1]
        assert np.abs(found - exact)[:old_rows].max() <= GRAM


def _with_bound(both, *parts):
    both.facts = both.facts | {"inner_product_bound": max(part.facts["inner_product_bound"] for part in parts)}
    return both


@pytest.mark.parametrize("saved", [False, True], ids=["at once", "after loading"])
@pytest.mark.parametrize("features", ["reduced", "gram"])
def test_a_decomposition_in_reduced_coordinates(features, saved, bert, tmp_path):
    table = tiny.table(30)
    pefs = of_texts(bert, table, features=features)
    npeff = NPEFF(4, n_init=1, random_state=0).fit(pefs)
    if saved:
        npeff = nb.load(npeff.save(tmp_path / "x.npeff"))
    else:
        dense = NPEFF(4, n_init=1, random_state=0).fit(of_texts(bert, table, features="dense"))
        assert npeff.explained_variance_ == pytest.approx(dense.explained_variance_, abs=0.02)
    again = npeff.transform(of_texts(bert, table, like=npeff))
    np.testing.assert_allclose(again, npeff.coefficients_, atol=2e-3)  # the fit stops a little before its end
    assert npeff.transform(of_texts(bert, ["who is the king", "how many years"], like=npeff)).shape == (2, 4)


def test_like_refuses_the_largest_entries(bert):
    first = of_texts(bert, tiny.TEXTS, features="topk", budget=50)
    with pytest.raises(ValueError, match="features='topk', whose coordinates are those of its own examples: extract all examples together"):
        of_texts(bert, tiny.TEXTS, like=first)


@pytest.mark.parametrize("saved", [False, True], ids=["at once", "after loading"])
def test_like_asks_the_same_question(saved, bert, tmp_path):
    """Independent labels instead of the classes that the model was made for: written down, so that it need not be said again."""
    first = of_texts(bert, tiny.TEXTS, features="dense", output=MultiLabel())
    like = nb.load(first.save(tmp_path / "x.pefs")) if saved else first
    again = of_texts(bert, tiny.TEXTS, like=like)
    assert again.facts["output"] == first.facts["output"]
    np.testing.assert_allclose(again.factors, first.factors, atol=1e-6 * np.abs(first.factors).max())


def test_like_takes_the_same_fisher(bert):
    table = tiny.table(8)
    for fisher in ("predicted", "empirical"):
        first = of_texts(bert, table, features="dense", fisher=fisher)
        again = of_texts(bert, table, like=first)
        np.testing.assert_allclose(again.factors, first.factors, atol=1e-6 * np.abs(first.factors).max())


# ---------------------------------------------------------------------------------------------------------- which one, and how large


WHY = r"(reduced|sketch): the certified reduction would cost about (\S+) times the passes through the model and hold (\S+) GB"


def predicted(model, size: Size, budget: int | None = None) -> tuple[str, float, float]:
    """What ``auto`` takes, and its reasons: cost in passes through the model, memory in GB."""
    found = FeatureMap.choose("auto", choose_parameters(model), size=size, budget=budget)
    kind, cost, held = re.fullmatch(WHY, found.why).groups()
    assert kind == found.kind
    return kind, float(cost), float(held)


@pytest.fixture
def large(monkeypatch):
    """As if the tiny models were too large to keep rows whole."""
    monkeypatch.setattr(features_module, "DENSE_LIMIT", 0)


@pytest.mark.parametrize(("size", "budget"), [(Size(8, 2, 8), 2), (Size(100, 2, 400), None), (Size(10_000, 2, 20), None), (Size(10_000, 5, 20), 40)])
def test_auto_takes_what_is_predicted_to_be_cheap(size, budget, bert, large, monkeypatch):
    kind, cost, held = predicted(bert, size, budget)
    assert (kind == "reduced") == (cost <= features_module.REDUCED_UP_TO and held <= features_module.HELD_GB)
    for times, memory, expected in ((1.1, 1.1, "reduced"), (0.9, 1.1, "sketch"), (1.1, 0.9, "sketch")):
        monkeypatch.setattr(features_module, "REDUCED_UP_TO", times * cost)
        monkeypatch.setattr(features_module, "HELD_GB", memory * held)
        assert predicted(bert, size, budget) == (expected, cost, held)


def test_more_landmarks_are_predicted_to_cost_and_to_hold_more(bert, large):
    few, some, many = (predicted(bert, Size(10_000, 2, 20), budget) for budget in (16, 160, 1600))
    assert few[1] < some[1] < many[1]
    assert few[2] < some[2] < many[2]
    assert predicted(bert, Size(50, 2, 20))[1:] == predicted(bert, Size(10_000, 2, 20), 100)[1:]  # no more than there are rows


@pytest.mark.parametrize("rows", [4, 40])
def test_the_memory_that_landmarks_hold_is_predicted(rows, bert, large, monkeypatch):
    """Against what is held: within a fifth, since texts differ in length."""
    held = []
    gather = landmarks_module.gather

    def watched(*arguments):
        found = gather(*arguments)
        held.append(4 * sum(use.numbers for chunks in found.uses.values() for chunk in chunks for use in chunk) / 2**30)
        return found

    monkeypatch.setattr(landmarks_module, "gather", watched)
    table = pd.DataFrame({"text": ["who is the king of the city"] * 30})
    of_texts(bert, table, features="reduced", budget=rows, parameters="default")
    assert predicted(bert, Size(30, 2, 9), rows)[2] == pytest.approx(held[0], rel=0.2)


@pytest.mark.parametrize(("constants", "kind", "why"), [
    ({}, "dense", r"dense: 3,840 parameters are kept whole up to 20,000"),
    ({"DENSE_LIMIT": 100, "REDUCED_UP_TO": 1e9}, "reduced", WHY),
    ({"DENSE_LIMIT": 100, "REDUCED_UP_TO": 0.0}, "sketch", WHY),
])  # fmt: skip
def test_auto_says_why(constants, kind, why, bert, monkeypatch):
    for name, value in constants.items():
        monkeypatch.setattr(features_module, name, value)
    pefs = of_texts(bert, tiny.TEXTS, parameters="default")
    assert pefs.facts["features"] == pefs.feature_map.kind == kind
    assert pefs.facts["features_why"].startswith(kind)
    assert re.fullmatch(why, pefs.facts["features_why"]), pefs.facts["features_why"]
    assert of_texts(bert, tiny.TEXTS, features="dense").facts["features_why"] == "as asked"


def test_a_budget_is_what_it_says(bert):
    table = choose_parameters(bert)
    sketch = FeatureMap.choose("sketch", table, budget=13 * 25)
    assert (sketch.side, sketch.width) == (5, 325)
    assert FeatureMap.choose("reduced", table, size=Size(500, 2, 5), budget=60).rows == 60
    assert FeatureMap.choose("reduced", table, size=Size(20, 2, 5), budget=60).rows == 40  # there are no more
    assert FeatureMap.choose("reduced", table, size=Size(5000, 2, 5)).rows == features_module.LANDMARK_ROWS
    assert FeatureMap.choose("topk", table, budget=60).rows == 60
    assert FeatureMap.choose("topk", table, size=Size(9, 3, 5)).rows == 3 * int(table["numel"].sum())  # no more than there are
    with pytest.raises(ValueError, match="budget=0: it must be at least 1"):
        FeatureMap.choose("sketch", table, budget=0)


def test_too_many_rows_for_a_gram_are_refused(bert, monkeypatch):
    monkeypatch.setattr(features_module, "GRAM_ROWS", 15)
    words = "features='gram' takes all inner products of 16 factor rows; it is made for up to 15: use 'reduced' or 'sketch', or fewer examples"
    with pytest.raises(ValueError, match=words):
        of_texts(bert, tiny.TEXTS, features="gram")
    assert len(of_texts(bert, tiny.TEXTS[:7], features="gram")) == 7


def test_landmarks_that_take_too_much_memory_are_refused(bert, monkeypatch):
    monkeypatch.setattr(landmarks_module, "HELD_BYTES", 20_000)
    words = r"the gradients of \d+ of 8 landmark examples take \d+\.\d GB, more than the .* GB they may: give a smaller budget= \(landmark rows\)"
    with pytest.raises(MemoryError, match=words):
        of_texts(bert, tiny.TEXTS, features="reduced")


# ---------------------------------------------------------------------------------------------------------- sketch


def test_sketched_inner_products_are_unbiased_over_all_kinds_of_parameters():
    """Mean over seeds against the exact inner product: within three of its standard errors; seeds are fixed."""
    uses = {
        "a": [use_of("linear", 2, 1, 3, 9, 8, 0)], "b": [use_of("looked up", 2, 1, 4, 12, 5, 1)], "c": [use_of("written out", 2, 1, 1, 7, 6, 2)],
        "d": [use_of("linear", 2, 1, 3, 10, 2, 3), use_of("looked up", 2, 1, 2, 10, 2, 4)], "e": [use_of("linear", 2, 1, 1, 3, 3, 5)],
    }  # fmt: skip
    shapes = [tuple(of_one[0].shape[2:]) for of_one in uses.values()]
    rows = torch.cat([written_out(of_one).flatten(2) for of_one in uses.values()], 2)[:, 0]
    exact = gram(rows.numpy())

    def sketched(seed: int, side: int) -> np.ndarray:
        fm = FeatureMap("sketch", list(uses), shapes, seed=seed, side=side)
        return gram(torch.cat([fm.of_parameter(name, of_one) for name, of_one in uses.items()], 2)[:, 0].numpy())

    narrow, wide = (np.stack([sketched(seed, side) for seed in range(600)]) for side in (3, 6))
    for found in (narrow, wide):
        error = found.std(0) / len(found) ** 0.5
        assert (np.abs(found.mean(0) - exact) < 3 * error).all()
    assert wide.std(0)[0, 1] < 0.75 * narrow.std(0)[0, 1]


def test_a_larger_budget_is_more_exact(bert):
    exact = gram(unit_rows(of_texts(bert, tiny.table(20), features="dense", parameters="default")))
    error = []
    for side in (2, 4, 8, 16):
        found = [
            gram(unit_rows(of_texts(bert, tiny.table(20), features="sketch", parameters="default", budget=13 * side**2, seed=seed)))
            for seed in range(5)
        ]
        error.append(np.mean([np.linalg.norm(f - exact) / np.linalg.norm(exact) for f in found]))
    assert all(b < 0.9 * a for a, b in pairwise(error)), error
    assert error[2] < 0.6 * error[0]  # four times the side: half the scatter, and a little for what the principal directions leave out


def test_a_sketch_as_wide_as_the_parameters_is_exact(bert):
    """No map at all, and the thousandth of the energy that the principal directions leave out."""
    dense, kept = (of_texts(bert, tiny.table(20), features=f, parameters="default") for f in ("dense", "sketch"))
    found, exact = gram(unit_rows(kept)), gram(unit_rows(dense))
    assert np.linalg.norm(found - exact) < 2e-3 * np.linalg.norm(exact)


def test_norms_from_a_sketch_that_loses_nothing_are_the_exact_ones(bert):
    exact, sketched = (of_texts(bert, tiny.table(12), features="sketch", parameters="default", exact_norms=e) for e in (True, False))
    for name in ("norms", "traces"):
        np.testing.assert_allclose(getattr(sketched, name), getattr(exact, name), rtol=1e-4)
    np.testing.assert_allclose(sketched.parameters["energy"], exact.parameters["energy"], rtol=1e-4)
    assert (exact.facts["exact_norms"], sketched.facts["exact_norms"]) == (True, False)


def test_traces_from_a_sketch_are_right_on_average(bert):
    def traces(**settings):
        return of_texts(bert, tiny.TEXTS, features="sketch", parameters="MLP in", budget=2 * 36, batch_size=8, **settings).traces

    exact = traces()
    found = np.stack([traces(exact_norms=False, seed=seed) for seed in range(60)])
    error = found.std(0, ddof=1) / len(found) ** 0.5
    assert (np.abs(found.mean(0) - exact) < 3 * error).all()
    assert (error < 0.1 * exact).all()


@pytest.mark.parametrize("features", ["dense", "reduced", "gram", "topk"])
def test_norms_are_exact_where_there_is_no_sketch(features, bert):
    exact, asked = (of_texts(bert, tiny.TEXTS, features=features, exact_norms=e) for e in (True, False))
    np.testing.assert_array_equal(asked.norms, exact.norms)
    assert asked.facts["exact_norms"]


# ---------------------------------------------------------------------------------------------------------- topk


def class_rows(model, texts, i, names) -> np.ndarray:
    return twins.fisher_rows(model, SequenceClasses().logits, dict(tiny.tokenizer()([texts[i]], return_tensors="pt")), names)


@pytest.mark.parametrize("budget", [1, 40, 700])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_largest_entries_of_the_paper_s_factor(classes, budget):
    """√p_y ∇log p_y, a row a class in the classes' own order; one budget over all rows of an example."""
    model = tiny.bert(classes)
    pefs = of_texts(model, tiny.TEXTS, features="topk", budget=budget, parameters="default")
    names, sparse = list(pefs.parameters["name"]), pefs.sparse
    assert (sparse.values.shape, sparse.rank) == ((8, budget), classes)
    for i in range(8):
        rows = class_rows(model, tiny.TEXTS, i, names)
        assert sparse.size == rows.shape[1]
        place = np.repeat(np.arange(classes), np.diff(sparse.offsets[i])) * sparse.size + sparse.columns[i]
        assert len(set(place)) == budget
        flat = rows.ravel()
        scale = np.abs(flat).max()
        np.testing.assert_allclose(sparse.values[i], flat[place], rtol=1e-4, atol=1e-5 * scale)
        left = np.abs(np.delete(flat, place)).max()
        assert np.abs(flat[place]).min() >= left - 1e-5 * scale  # up to float32, nothing larger was left out
        assert pefs.norms[i] == pytest.approx(twins.frobenius(rows), rel=FLOAT32)  # of the whole Fisher
    written = pefs.sparse.matrix()
    flat = pefs.factors.reshape(8 * classes, -1).astype(np.float64)
    exact = (written @ written.T).toarray()
    np.testing.assert_allclose(flat @ flat.T, exact, atol=1e-6 * np.abs(exact).max())
    kept = np.square(sparse.values.astype(np.float64)).sum(1) / pefs.traces
    np.testing.assert_allclose(pefs.to_frame()["kept"], kept, rtol=1e-5)


def test_all_entries_are_the_whole_fisher(bert):
    dense = of_texts(bert, tiny.TEXTS, features="dense", parameters="default")
    pefs = of_texts(bert, tiny.TEXTS, features="topk", budget=10**9, parameters="default")
    whole = pefs.sparse.matrix().toarray().reshape(8, 3, -1)
    for i in range(8):
        assert twins.relative_distance(whole[i], dense.factors[i]) < FLOAT32
    assert pefs.facts["energy_kept"] == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(pefs.to_frame()["kept"], 1, atol=1e-5)
    # Three rows where two would do, and the same inner products of Fishers.
    a, b = unit_rows(pefs).reshape(8, 3, -1), unit_rows(dense).reshape(8, 2, -1)
    inner = [np.square(np.einsum("iyd,jzd->ijyz", x, x)).sum((2, 3)) for x in (a, b)]
    np.testing.assert_allclose(*inner, atol=1e-5)


def test_a_decomposition_of_the_largest_entries(bert, tmp_path):
    pefs = of_texts(bert, tiny.table(20), features="topk", budget=300)
    npeff = NPEFF(3, n_init=1, random_state=0).fit(pefs)
    assert 0 < npeff.explained_variance_ < 1
    back = nb.load(pefs.save(tmp_path / "x.pefs"))
    for name in ("values", "columns", "offsets"):
        np.testing.assert_array_equal(getattr(back.sparse, name), getattr(pefs.sparse, name))
    np.testing.assert_array_equal(pefs[3:5].sparse.values, pefs.sparse.values[3:5])


class SometimesImpossible(nn.Module):
    """A class that, for the first half of the examples, cannot be."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 4)

    def forward(self, x):
        z = self.out(x)
        never = torch.full_like(z[:, 3:], -1e4)
        return torch.cat([z[:, :3], torch.where(x[:, :1] > 0, never, z[:, 3:])], 1)


@pytest.mark.parametrize("settings", [{"features": "topk"}, {"features": "topk", "budget": 40}, {"features": "dense", "diagonal": 16},
                                      {"features": "dense", "rank": 3}, {"features": "dense", "rank": 0.99}])  # fmt: skip
def test_batches_with_fewer_rows_than_others_fit_beside_them(settings):
    inputs = numbers(12, 3)
    inputs[:, 0] = torch.linspace(2, -2, 12)
    model = tiny.seeded(SometimesImpossible)
    pefs = of_module(model, inputs, **settings)
    assert len(pefs) == 12
    for i in (0, 11):
        expected = twins.fisher_rows(model, tiny.plain_logits, inputs[i : i + 1], ["out.weight", "out.bias"])
        if "topk" in settings.values():
            assert pefs.sparse.rank == 4
            if "budget" not in settings:
                assert twins.relative_distance(pefs.sparse.take(np.array([i])).matrix().toarray(), expected) < FLOAT32
        elif "diagonal" in settings:
            assert np.linalg.norm(pefs.diagonals.matrix().toarray()[i] - np.square(expected).sum(0)) < FLOAT32 * np.linalg.norm(
                np.square(expected).sum(0)
            )


class LeavesOneOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.never, self.out = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.out(x)


def test_all_entries_of_parameters_some_of_which_are_not_used():
    model, inputs = tiny.seeded(LeavesOneOut), numbers(5, 3)
    pefs = of_module(model, inputs, features="topk", diagonal=10**6)
    expected = twins.fisher_rows(model, tiny.plain_logits, inputs[:1], list(pefs.parameters["name"]))
    assert twins.relative_distance(pefs.sparse.take(np.array([0])).matrix().toarray(), expected) < FLOAT32
    np.testing.assert_allclose(pefs.diagonals.matrix().toarray()[0], np.square(expected).sum(0), atol=1e-6)


def test_rotated_rows_have_no_largest_entries_of_their_own(bert):
    """Either refused, or everything is about the same rows."""
    try:
        pefs = of_texts(bert, tiny.TEXTS, features="topk", rank=1)
    except ValueError as error:
        assert "rank" in str(error) and "topk" in str(error)
    else:
        for i in range(8):
            rows = pefs.sparse.take(np.array([i])).matrix().toarray()
            assert pefs.norms[i] == pytest.approx(twins.frobenius(rows), rel=1e-3)


# ---------------------------------------------------------------------------------------------------------- diagonals


def brute_force_diagonals(model, texts, names) -> np.ndarray:
    """(n, p): Σ_y p_y (∇log p_y)², entry by entry."""
    found = []
    for text in texts:
        p, gradients = twins.log_probability_gradients(model, SequenceClasses().logits, dict(tiny.tokenizer()([text], return_tensors="pt")), names)
        found.append((p[:, None] * gradients**2).sum(0))
    return np.stack(found)


@pytest.mark.parametrize(
    "settings",
    [
        {"features": "dense"},
        {"features": "dense", "rank": 1},
        {"features": "sketch", "budget": 50},
        {"features": "reduced", "budget": 4},
        {"features": "topk"},
    ],
)
def test_the_diagonal_fisher_of_the_data_set(settings, bert, tmp_path):
    pefs = of_texts(bert, tiny.TEXTS, diagonal=True, parameters=["*layer.1*", "classifier.weight"], **settings)
    names = list(pefs.parameters["name"])
    expected = brute_force_diagonals(bert, tiny.TEXTS, names).mean(0)
    assert np.linalg.norm(pefs.diagonal - expected) < FLOAT32 * np.linalg.norm(expected)
    there, at = dict(bert.named_parameters()), 0
    by_name = pefs.diagonal_by_name()
    assert list(by_name) == names
    for name, value in by_name.items():
        assert value.shape == tuple(there[name].shape)
        np.testing.assert_allclose(value.ravel(), expected[at : at + value.size], rtol=1e-3, atol=1e-6 * expected.max())
        at += value.size
    back = nb.load(pefs.save(tmp_path / "x.pefs"))
    np.testing.assert_array_equal(back.diagonal, pefs.diagonal)
    assert pefs.diagonals is None


def test_a_diagonal_that_was_not_asked_for_is_said_so(bert):
    with pytest.raises(ValueError, match=r"no diagonal Fisher was kept: extract with diagonal=True"):
        of_texts(bert, tiny.TEXTS[:2]).diagonal_by_name()


@pytest.mark.parametrize("entries", [1, 30, 10**6])
def test_the_largest_entries_of_each_example_s_diagonal(entries, bert, tmp_path):
    pefs = of_texts(bert, tiny.TEXTS, diagonal=entries, parameters=["*layer.1*", "classifier.weight"])
    expected = brute_force_diagonals(bert, tiny.TEXTS, list(pefs.parameters["name"]))
    found = pefs.diagonals
    assert found.values.shape == (8, min(entries, expected.shape[1]))
    np.testing.assert_allclose(found.norms, np.linalg.norm(expected, axis=1), rtol=FLOAT32)  # of the whole diagonal
    for i in range(8):
        scale = expected[i].max()
        np.testing.assert_allclose(found.values[i], expected[i][found.indices[i]], rtol=1e-4, atol=1e-6 * scale)
        np.testing.assert_allclose(found.values[i], np.sort(expected[i])[::-1][: found.values.shape[1]], rtol=1e-4, atol=1e-6 * scale)
    np.testing.assert_allclose(pefs.diagonal, expected.mean(0), rtol=1e-3, atol=1e-6 * expected.max())
    back = nb.load(pefs.save(tmp_path / "x.pefs"))
    np.testing.assert_array_equal(back.diagonals.values, found.values)
    np.testing.assert_array_equal(pefs[2:4].diagonals.indices, found.indices[2:4])


def test_a_scaled_parameter_s_diagonal_is_that_over_the_scaled_parameter(bert):
    plain, scaled = (of_texts(bert, tiny.TEXTS, parameters=["classifier.*"], diagonal=True, scale=s) for s in (None, {"classifier.bias": 3.0}))
    np.testing.assert_allclose(scaled.diagonal_by_name()["classifier.bias"], 9 * plain.diagonal_by_name()["classifier.bias"], rtol=1e-5)
    np.testing.assert_allclose(scaled.diagonal_by_name()["classifier.weight"], plain.diagonal_by_name()["classifier.weight"], rtol=1e-5)


def test_the_diagonal_of_drawn_labels_is_unbiased():
    model = tiny.bert(12)
    settings = {"features": "dense", "parameters": ["classifier.weight"], "diagonal": True, "batch_size": 8}
    exact = of_texts(model, tiny.TEXTS, **settings).diagonal.astype(np.float64)
    drawn = np.stack([of_texts(model, tiny.TEXTS, classes=Sampled(2, 1, seed=seed), **settings).diagonal for seed in range(60)]).astype(np.float64)
    error = drawn.std(0, ddof=1) / len(drawn) ** 0.5
    assert np.linalg.norm(drawn.mean(0) - exact) < 3 * np.linalg.norm(error)
    assert np.linalg.norm(error) < 0.15 * np.linalg.norm(exact)  # the bound says something
    beyond = np.abs(drawn.mean(0) - exact) > 3 * error + 1e-7 * exact.max()
    assert beyond.mean() < 0.03


@pytest.mark.parametrize("diagonal", [-1, -5])
def test_a_negative_number_of_entries_is_refused(diagonal, bert):
    with pytest.raises(ValueError, match=f"diagonal={diagonal}: give True, False, or how many entries of each example's diagonal to keep"):
        of_texts(bert, tiny.TEXTS, diagonal=diagonal)
