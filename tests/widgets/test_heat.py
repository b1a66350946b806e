"""The heatmap's bytes, orders, tiles and cells against slow obvious twins, and what it refuses."""

from __future__ import annotations

import base64
import tracemalloc
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from npeff_nb.widgets import heat

CLASSES = ["cat", "dog", "ant"]


def decomposition(n=60, r=5, seed=0, dtype=np.float32):
    """A decomposition as far as the heatmap looks at it: sparse coefficients, one component that is used nowhere, examples that use none."""
    rng = np.random.default_rng(seed)
    W = (rng.random((n, r)) ** 3 * (rng.random((n, r)) < 0.5)).astype(dtype)
    W[:, r - 1] = 0
    W[::17] = 0
    gold = rng.integers(0, 3, n)
    fine = [None if i % 9 == 0 else f"kind {i % 4}" for i in range(n)]
    examples = pd.DataFrame({"text": [f"text {i}" for i in range(n)], "label": gold, "fine": fine})
    logits = rng.normal(size=(n, 3)) + 2 * np.eye(3)[gold]
    return SimpleNamespace(coefficients_=W, examples=examples, classes=CLASSES, logits=logits, family="categorical", choices={}, facts={})


@pytest.fixture
def made():
    return decomposition()


@pytest.fixture
def desk(made):
    return desk_of(made)


def desk_of(npeff):
    """As much of a desk as the heatmap's questions need."""
    return SimpleNamespace(npeff=npeff, bundle=SimpleNamespace(grid=heat.Grid(npeff), example=lambda i: {"row": i}))


def ask(desk, handler, **content):
    return handler(desk, {"order": heat.STRONGEST, "focus": 0, "strip": "", "from": 0, "to": len(desk.npeff.coefficients_)} | content, None)


def columns_of(order, start, stop, columns):
    """The examples of each column, one by one."""
    size = stop - start
    return [[int(order[start + i]) for i in range(c * size // columns, (c + 1) * size // columns)] for c in range(columns)]


# ------------------------------------------------------------------------------------------------------------------------ the bytes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bytes_are_shares_of_the_components_largest_coefficient(dtype, monkeypatch):
    monkeypatch.setattr(heat, "BLOCK", 7 * 5 * 8)  # several blocks, the last one not full
    made = decomposition(dtype=dtype)
    W, matrix = made.coefficients_.astype(np.float64), heat.Grid(made).matrix
    expected = 255 * W / np.maximum(W.max(0), 1e-300)
    assert matrix.dtype == np.uint8 and matrix.shape == W.shape
    # half a step of rounding, and as much again as float32 loses at 255
    assert np.abs(matrix - np.maximum(expected, W > 0)).max() <= 0.5 + 1e-4
    assert ((matrix > 0) == (W > 0)).all()
    assert (matrix.max(0)[:-1] == 255).all() and not matrix[:, -1].any()


@pytest.mark.parametrize("largest", [1e-45, 1e-30, 1e30])
def test_tiny_and_huge_coefficients_stay_numbers(largest):
    made = decomposition()
    made.coefficients_[:, 0] = 0
    made.coefficients_[3, 0] = largest
    matrix = heat.Grid(made).matrix
    assert matrix[3, 0] > 0 and (matrix[:, 0] > 0).sum() == 1


def test_bytes_are_made_without_a_second_copy_of_the_coefficients(tmp_path):
    n, r = 20_000, 64
    W = np.lib.format.open_memmap(tmp_path / "W.npy", mode="w+", dtype=np.float32, shape=(n, r))
    W[:] = np.random.default_rng(0).random((n, r), dtype=np.float32)
    grid = heat.Grid(SimpleNamespace(coefficients_=np.load(tmp_path / "W.npy", mmap_mode="r"), examples=None, classes=None, logits=None))
    tracemalloc.start()
    _ = grid.matrix
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # one byte a cell, and per example its strongest component (int32) and coefficient (float32)
    assert kept < n * r + 8 * n + 100_000
    # on the way two blocks in float32 and one of flags
    assert peak < kept + 3 * heat.BLOCK


# ------------------------------------------------------------------------------------------------------------------------ orders


def test_strongest_order_groups_by_component_and_falls_within(made):
    W = made.coefficients_
    expected = sorted(range(len(W)), key=lambda i: (W[i].argmax() if W[i].max() > 0 else W.shape[1], -W[i].max(), i))
    assert heat.Grid(made).order(heat.STRONGEST).tolist() == expected


@pytest.mark.parametrize("k", [0, 3, 4])
def test_order_by_a_component_falls(made, k):
    w = made.coefficients_[:, k]
    assert heat.Grid(made).order(heat.FOCUS, k).tolist() == sorted(range(len(w)), key=lambda i: (-w[i], i))


def test_orders_by_components_are_kept_but_not_all(made):
    grid = heat.Grid(decomposition(r=9))
    for k in range(9):
        grid.order(heat.FOCUS, k)
    assert len(grid._focuses) == heat.FOCUSES and grid.order(heat.FOCUS, 8) is grid.order(heat.FOCUS, 8)


def test_order_by_a_column_groups_its_values_and_ends_with_the_unknown(made):
    grid = heat.Grid(made)
    order, strongest = grid.order("column: fine"), grid.order(heat.STRONGEST).tolist()
    fine = made.examples["fine"]
    counts = Counter(value for value in fine.dropna())
    values = sorted(counts, key=lambda v: (-counts[v], v))
    place = {value: i for i, value in enumerate(values)}
    expected = sorted(range(len(fine)), key=lambda i: (place.get(fine[i], len(place)), strongest.index(i)))
    assert order.tolist() == expected
    assert pd.isna(fine[order[-1]])


def test_clustered_order_keeps_components_together_and_neighbours_that_are_used_together():
    """Components 0 and 4, 1 and 3 are used together: the pairs stand side by side, which their numbers do not."""
    rng = np.random.default_rng(0)
    pairs, W = {0: 4, 4: 0, 1: 3, 3: 1}, np.zeros((200, 6), dtype=np.float32)
    for i in range(200):
        k = (0, 4, 1, 3, 2)[i % 5]
        W[i, k] = 0.5 + 0.4 * rng.random()
        if k in pairs and i % 2:
            W[i, pairs[k]] = 0.3
    grid = heat.Grid(SimpleNamespace(coefficients_=W, examples=None, classes=None, logits=None))
    order, components = grid.order(heat.CLUSTERED), grid.component_order.tolist()
    assert sorted(order.tolist()) == list(range(200)) and sorted(components) == list(range(6))
    assert abs(components.index(0) - components.index(4)) == 1 and abs(components.index(1) - components.index(3)) == 1
    assert components[-1] == 5  # no example's strongest
    blocks = [int(W[i].argmax()) for i in order]
    assert list(dict.fromkeys(blocks)) == components[:-1] and blocks == sorted(blocks, key=components.index)
    # within a block, those that use the neighbour too stand on the neighbour's side
    for a in pairs:
        own = [W[i, pairs[a]] > 0 for i in order if W[i].argmax() == a]
        assert own == sorted(own, reverse=components.index(pairs[a]) < components.index(a))


@pytest.mark.parametrize(("n", "r"), [(1, 1), (1, 4), (2, 2), (3, 1), (40, 3)])
def test_every_order_has_every_example_once_at_any_size(n, r):
    made = decomposition(n, r)
    grid = heat.Grid(made)
    for name in grid.orders:
        assert sorted(grid.order(name).tolist()) == list(range(n)), name
        assert grid.order(name).dtype == np.int32
    assert sorted(grid.component_order.tolist()) == list(range(r))


def test_nothing_but_coefficients_is_enough():
    grid = heat.Grid(SimpleNamespace(coefficients_=np.zeros((5, 3)), examples=None, classes=None, logits=None))
    assert grid.orders == [heat.STRONGEST, heat.CLUSTERED, heat.FOCUS] and grid.columns == []
    assert sorted(grid.order(heat.CLUSTERED)) == [0, 1, 2, 3, 4] and not grid.matrix.any()


# ------------------------------------------------------------------------------------------------------------------------ columns of the table


def test_columns_are_gold_prediction_and_label_columns(made):
    assert [column["name"] for column in heat.Grid(made).columns] == ["label", "prediction", "fine"]
    assert heat.Grid(made).orders == [heat.STRONGEST, heat.CLUSTERED, heat.FOCUS, "column: label", "column: prediction", "column: fine"]
    for strip in heat.strips(made)[:2]:
        values = {"label": np.asarray(CLASSES)[made.examples["label"]], "prediction": np.asarray(CLASSES)[made.logits.argmax(1)]}[strip.name]
        assert [strip.values[code] for code in strip.codes] == values.tolist()
        assert strip.codes.dtype == np.int16


def test_gold_and_prediction_share_their_list_of_values(made):
    gold, predictions, _ = heat.Grid(made).columns
    assert gold["values"] == predictions["values"] and set(gold["values"]) == set(CLASSES)


def test_values_come_commonest_first_and_the_unknown_have_no_code(made):
    fine = heat.strips(made)[2]
    counts = Counter(value for value in made.examples["fine"].dropna())
    assert fine.values == sorted(counts, key=lambda v: (-counts[v], v))
    assert (fine.codes == -1).tolist() == made.examples["fine"].isna().tolist()


def test_a_column_named_as_ours_is_told_apart(made):
    made.examples["prediction"] = ["x", "y"] * 30
    assert [column["name"] for column in heat.Grid(made).columns] == ["label", "prediction", "prediction (table)", "fine"]


def test_many_long_and_unspeakable_values_are_cut():
    n = 3000
    made = decomposition(n)
    made.classes, made.logits = [f"class {i}" for i in range(n)], np.eye(n, dtype=np.float32)
    made.examples = pd.DataFrame({"text": ["x"] * n, "odd": ["a\ud800b", "long " * 50] * (n // 2)})
    prediction, odd = heat.strips(made)
    assert len(prediction.values) == heat.MOST_VALUES and prediction.values[-1] == f"{n - heat.MOST_VALUES + 1} rarer values"
    assert prediction.codes.max() == heat.MOST_VALUES - 1 and (prediction.codes == heat.MOST_VALUES - 1).sum() == n - heat.MOST_VALUES + 1
    assert all(len(value) <= heat.LONGEST and value.encode() for value in odd.values)


# ------------------------------------------------------------------------------------------------------------------------ tiles


@pytest.mark.parametrize("order", [heat.STRONGEST, heat.CLUSTERED, heat.FOCUS, "column: fine"])
@pytest.mark.parametrize(("start", "stop", "columns"), [(0, 60, 60), (0, 60, 7), (0, 60, 1), (13, 59, 11), (20, 21, 1), (5, 12, 6)])
def test_a_tile_has_the_largest_byte_and_the_commonest_code_of_each_column(desk, order, start, stop, columns):
    answer, (values, codes) = ask(desk, heat.tile, order=order, focus=2, strip="fine", columns=columns, **{"from": start, "to": stop})
    grid = heat.grid(desk)
    rows = grid.component_order.tolist() if order == heat.CLUSTERED else None
    assert answer == {"order": order, "from": start, "to": stop, "columns": columns, "rows": rows}
    groups = columns_of(grid.order(order, 2), start, stop, columns)
    expected = [[int(grid.matrix[group, k].max()) for group in groups] for k in range(5)]
    assert np.frombuffer(values, np.uint8).reshape(5, columns).tolist() == expected
    fine = grid.strips[2]
    for code, group in zip(np.frombuffer(codes, "<i2"), groups, strict=True):
        counts = Counter(int(fine.codes[i]) for i in group)
        assert code == min(counts, key=lambda c: (-counts[c], c if c >= 0 else 99))


def test_a_tile_without_a_strip_has_one_buffer(desk):
    assert len(ask(desk, heat.tile, columns=3)[1]) == 1


def test_random_tiles_agree_with_the_twin(desk):
    rng, grid = np.random.default_rng(1), heat.grid(desk)
    for _ in range(60):
        start = int(rng.integers(0, 60))
        stop = int(rng.integers(start + 1, 61))
        columns = int(rng.integers(1, stop - start + 1))
        values = np.frombuffer(ask(desk, heat.tile, columns=columns, **{"from": start, "to": stop})[1][0], np.uint8).reshape(5, columns)
        groups = columns_of(grid.order(heat.STRONGEST), start, stop, columns)
        assert values.tolist() == [[int(grid.matrix[group, k].max()) for group in groups] for k in range(5)]


def test_a_cell_is_the_strongest_example_of_its_range(desk, made):
    for k in range(5):
        found = ask(desk, heat.cell, component=k, **{"from": 7, "to": 31})
        w = [float(made.coefficients_[i, k]) for i in heat.grid(desk).order(heat.STRONGEST)[7:31]]
        assert found["component"] == k and found["at"] == 7 + w.index(max(w))
        assert found["coefficient"] == pytest.approx(max(w), abs=1e-5)  # told with five decimals
        assert found["example"] == {"row": int(heat.grid(desk).order(heat.STRONGEST)[found["at"]])}


def test_places_are_where_the_rows_stand(desk):
    order = heat.grid(desk).order(heat.CLUSTERED).tolist()
    assert ask(desk, heat.places, order=heat.CLUSTERED, rows=[5, 0, 59, 5]) == [order.index(i) for i in (5, 0, 59, 5)]
    assert ask(desk, heat.places, rows=[]) == []


def test_of_very_many_coefficients_a_page_has_a_sample_along_the_default_order(made):
    grid = heat.Grid(made)
    assert grid.sample(60) is None and grid.static()["sample"] is None
    rows = grid.sample(20)
    order = grid.order(heat.STRONGEST).tolist()
    assert sorted(order.index(row) for row in rows) == list(range(0, 60, 3))
    saved = grid.static(rows)
    decoded = {name: np.frombuffer(base64.b64decode(text), "<i4") for name, text in saved["orders"].items()}
    assert np.frombuffer(base64.b64decode(saved["sample"]), "<i4").tolist() == rows.tolist()
    assert (np.frombuffer(base64.b64decode(saved["matrix"]), np.uint8).reshape(20, 5) == grid.matrix[rows]).all()
    for name, places in decoded.items():
        assert [int(rows[place]) for place in places] == [row for row in grid.order(name).tolist() if row in set(rows.tolist())]
    assert (np.frombuffer(base64.b64decode(saved["codes"]["fine"]), "<i2") == grid.strips[2].codes[rows]).all()


@pytest.mark.parametrize(
    ("handler", "content", "words"),
    [
        (heat.tile, {"order": "age", "columns": 2}, r"there is no order 'age' of the examples; there are 'strongest component', 'clustered'"),
        (heat.tile, {"order": None, "columns": 2}, r"there is no order None"),
        (heat.tile, {"order": ["x"], "columns": 2}, r"there is no order \['x'\]"),
        (heat.tile, {"order": heat.FOCUS, "focus": 5, "columns": 2}, r"component 5 does not exist: this decomposition has 5 \(0 to 4\)\."),
        (heat.tile, {"order": heat.FOCUS, "focus": True, "columns": 2}, r"component True does not exist"),
        (heat.tile, {"strip": "age", "columns": 2}, r"there is no column 'age' to colour the strip by; there are 'label', 'prediction', 'fine'"),
        (heat.tile, {"columns": 0}, r"0 columns for 60 examples: 1 to 60 are possible"),
        (heat.tile, {"columns": 61}, r"61 columns for 60 examples"),
        (heat.tile, {"columns": 2.0}, r"2\.0 columns for 60 examples"),
        (heat.tile, {}, r"0 columns"),
        (heat.tile, {"from": 5, "to": 5, "columns": 1}, r"no examples from 5 to 5: this decomposition has 60, and a range is at least one long"),
        (heat.tile, {"from": -1, "columns": 1}, r"no examples from -1 to 60"),
        (heat.tile, {"to": 61, "columns": 1}, r"no examples from 0 to 61"),
        (heat.tile, {"from": "0", "columns": 1}, r"no examples from '0' to 60"),
        (heat.cell, {"component": -1}, r"component -1 does not exist"),
        (heat.cell, {}, r"component None does not exist"),
        (heat.cell, {"component": 1, "from": 9, "to": 3}, r"no examples from 9 to 3"),
        (heat.places, {"rows": [60]}, r"rows \[60\] are not all examples: this decomposition has 60 \(0 to 59\)\."),
        (heat.places, {"rows": None}, r"rows None are not all examples"),
    ],
)
def test_wrong_questions_are_refused_in_words(desk, handler, content, words):
    with pytest.raises(ValueError, match=words):
        ask(desk, handler, **content)


def test_a_decomposition_without_columns_says_that_there_is_none():
    desk = desk_of(SimpleNamespace(coefficients_=np.ones((4, 2)), examples=None, classes=None, logits=None))
    with pytest.raises(ValueError, match="no column 'label' to colour the strip by; there is none"):
        ask(desk, heat.tile, strip="label", columns=2)


def test_a_saved_page_has_the_same_numbers(made):
    grid = heat.Grid(made)
    saved = grid.static()
    matrix = np.frombuffer(base64.b64decode(saved["matrix"]), np.uint8).reshape(60, 5)
    assert (matrix == grid.matrix).all()
    for name, text in saved["orders"].items():
        assert np.frombuffer(base64.b64decode(text), "<i4").tolist() == grid.order(name).tolist()
    assert list(saved["orders"]) == [heat.STRONGEST, heat.CLUSTERED] and saved["rows"] == {heat.CLUSTERED: grid.component_order.tolist()}
    for strip in grid.strips:
        assert np.frombuffer(base64.b64decode(saved["codes"][strip.name]), "<i2").tolist() == strip.codes.tolist()


def test_a_real_decomposition_goes_through(npeff):
    desk = desk_of(npeff)
    grid = heat.grid(desk)
    for name in grid.orders:
        _, (values, *_codes) = ask(desk, heat.tile, order=name, strip="prediction", columns=6)
        assert np.frombuffer(values, np.uint8).reshape(4, 6).max(1).tolist() == [255] * 4
