"""Two thin sides of a gradient against the gradient itself."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

from npeff_nb.fisher import gradients, layers
from npeff_nb.fisher.gradients import Tape, UnsupportedModule
from npeff_nb.fisher.layers import Outer, Whole, cross_grams, small_grams


def real(n=3, k=2, t=4, out=5, inn=6, shared_left=False, shared_right=False, seed=0) -> Outer:
    draw = torch.Generator().manual_seed(seed)
    left = torch.randn(n, 1 if shared_left else k, t, out, generator=draw, dtype=torch.float64)
    right = torch.randn(n, 1 if shared_right else k, t, inn, generator=draw, dtype=torch.float64)
    return Outer(left, right)


def looked_up(n=3, k=2, t=4, rows=7, width=6, seed=0) -> Outer:
    draw = torch.Generator().manual_seed(seed)
    return Outer(torch.randint(0, rows, (n, 1, t), generator=draw), torch.randn(n, k, t, width, generator=draw, dtype=torch.float64), rows)


def written_out(use: Outer) -> torch.Tensor:
    """Σ_t left_t ⊗ right_t, one product after the other."""
    n, k = use.right.shape[0], max(use.left.shape[1], use.right.shape[1])
    width = use.left.shape[-1] if use.rows is None else use.rows
    out = torch.zeros(n, k, width, use.right.shape[-1], dtype=use.right.dtype)
    for i in range(n):
        for y in range(k):
            for t in range(use.right.shape[2]):
                left = use.left[i, min(y, use.left.shape[1] - 1), t]
                left = left if use.rows is None else torch.nn.functional.one_hot(left, use.rows).double()
                out[i, y] += torch.outer(left, use.right[i, min(y, use.right.shape[1] - 1), t])
    return out


USES = {
    "both sides by row": real(),
    "left shared": real(shared_left=True),
    "right shared": real(shared_right=True),
    "one position": real(t=1),
    "many positions": real(t=60),
    "looked up": looked_up(),
    "looked up, repeated": looked_up(rows=2, t=9),
}
by_use = pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
# float64 throughout: these are the same sums in another order, so only rounding may differ.
EXACT = {"rtol": 1e-11, "atol": 1e-11}


@by_use
def test_dense_is_the_sum_of_outer_products(use):
    torch.testing.assert_close(use.dense(), written_out(use), **EXACT)


@by_use
@pytest.mark.parametrize("sides", ["both", "left", "right", "none"])
def test_projected_equals_projecting_the_gradient(use, sides):
    gradient = written_out(use)
    draw = torch.Generator().manual_seed(9)
    u = torch.randn(3, gradient.shape[2], generator=draw, dtype=torch.float64) if sides in {"both", "left"} else None
    v = torch.randn(2, gradient.shape[3], generator=draw, dtype=torch.float64) if sides in {"both", "right"} else None
    expected = gradient if u is None else u @ gradient
    expected = expected if v is None else expected @ v.T
    torch.testing.assert_close(use.projected(u, v), expected, **EXACT)


@by_use
def test_along_a_direction_sums_to_the_gradient_s_inner_product(use):
    gradient = written_out(use)
    direction = torch.randn(gradient.shape[2:], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    along = use.along(direction)
    assert along.shape[2] == use.right.shape[2]
    torch.testing.assert_close(along.sum(2), torch.einsum("nkoi,oi->nk", gradient, direction), **EXACT)


@pytest.mark.parametrize(
    "uses",
    [
        pytest.param([real(t=2, out=30, inn=40)], id="few positions: ghost"),
        pytest.param([real(t=2, out=30, inn=40, shared_right=True)], id="few positions, right shared: ghost"),
        pytest.param([real(t=60, out=3, inn=4)], id="many positions: dense"),
        pytest.param([real(t=60, out=3, inn=4, shared_right=True)], id="many positions, right shared: dense"),
        pytest.param([real(t=60, out=3, inn=4, shared_left=True)], id="many positions, left shared: dense"),
        pytest.param([looked_up()], id="looked up"),
        pytest.param([looked_up(rows=2, t=40)], id="looked up, many positions"),
        pytest.param([real(seed=1), real(seed=2)], id="two uses"),
        pytest.param([looked_up(rows=5), real(seed=3)], id="looked up and multiplied"),
        pytest.param([real(seed=3), looked_up(rows=5)], id="multiplied and looked up"),
        pytest.param([real(seed=1, t=3, shared_left=True), real(seed=2, t=5, shared_right=True)], id="uses of unlike positions and sharing"),
        pytest.param([looked_up(rows=5), looked_up(rows=5, t=2, seed=4), real(seed=3, shared_left=True)], id="three uses"),
    ],
)
def test_small_grams_equal_the_grams_of_the_gradients(uses):
    rows = sum(written_out(use) for use in uses).flatten(2)
    torch.testing.assert_close(small_grams(uses), rows @ rows.transpose(1, 2), **EXACT)


def test_small_grams_takes_both_ways(monkeypatch):
    """The cases above are worth something only when both branches are among them."""
    formed = []
    dense = Outer.dense
    monkeypatch.setattr(Outer, "dense", lambda use: formed.append(use) or dense(use))
    small_grams([real(t=2, out=30, inn=40)])
    assert not formed
    small_grams([real(t=60, out=3, inn=4)])
    assert len(formed) == 1


@pytest.mark.parametrize("slab", [1, 2**24])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("make", [real, looked_up])
def test_cross_grams_are_all_inner_products(make, whole, slab, monkeypatch):
    monkeypatch.setattr("npeff_nb.fisher.layers.SLAB", slab)  # one example at a time, or all at once
    shape = {"rows": 5, "width": 6} if make is looked_up else {"out": 5, "inn": 6}
    some, others = [make(**shape), real(seed=3)], [make(n=4, t=2, seed=5, **shape), real(n=4, t=7, seed=6)]
    expected = sum(map(written_out, some)).flatten(2).flatten(0, 1) @ sum(map(written_out, others)).flatten(2).flatten(0, 1).T
    some = [Whole(sum(use.dense() for use in some))] if whole else some
    torch.testing.assert_close(cross_grams(some, others), expected, **EXACT)


@by_use
def test_a_gradient_written_out_answers_alike(use):
    """What a layer without a formula gives behaves as the two thin sides do."""
    whole = Whole(written_out(use))
    assert whole.shape == use.shape
    draw = torch.Generator().manual_seed(4)
    u, v, direction = (torch.randn(s, generator=draw, dtype=torch.float64) for s in ((3, use.shape[2]), (2, use.shape[3]), use.shape[2:]))
    for maps in ((u, v), (u, None), (None, v), (None, None)):
        torch.testing.assert_close(whole.projected(*maps), use.projected(*maps), **EXACT)
    torch.testing.assert_close(whole.along(direction).sum(2), use.along(direction).sum(2), **EXACT)
    torch.testing.assert_close(small_grams([whole]), small_grams([use]), **EXACT)
    for changed in (lambda g: g.scaled(3.0), lambda g: g.padded(g.shape[1] + 2), lambda g: g.take(slice(1, 3)), lambda g: g.contiguous()):
        torch.testing.assert_close(changed(whole).dense(), changed(use).dense(), **EXACT)


@by_use
@pytest.mark.parametrize("read", [0, 1, 2], ids=["nothing is read", "one position is read", "two positions are read"])
def test_positions_that_add_nothing_are_left_out(use, read):
    """A position of its own in every example; the others are zero on the side of the rows, or on both where each has one row."""
    n, t = use.right.shape[0], use.right.shape[2]
    felt = torch.zeros(n, 1, t, 1, dtype=torch.float64)
    for i in range(n):
        felt[i, 0, (torch.arange(read) * 3 + i) % t] = 1
    felt[0] = 0  # an example without any
    use = Outer(use.left, use.right * felt, use.rows) if use.rows or use.left.shape[1] == 1 else Outer(use.left * felt, use.right)
    thin = use.thinned()
    assert thin.right.shape[2] == (max(1, read) if 2 * max(1, read) < t else t)
    torch.testing.assert_close(thin.dense(), written_out(use), **EXACT)
    torch.testing.assert_close(small_grams([thin]), small_grams([use]), **EXACT)


def test_what_is_not_seen_in_the_first_column_is_not_left_out():
    use = real(t=8)
    use.left[:, :, 1:, 0] = 0
    assert use.thinned() is use
    use.left[:, :, 1:] = 0
    use.left[1, 1, 5, 3] = torch.nan
    thin = use.thinned()
    assert thin.left.shape[2] == 2
    assert thin.left[1, 1].isnan().sum() == 1


def taught(model: nn.Module, inputs: torch.Tensor) -> Tape:
    """A tape over all parameters that knows which axes carry the examples."""
    tape = Tape(model, [name for name, _ in model.named_parameters()])
    tape.learn([(lambda: model(inputs[:1]), lambda: model(torch.cat([inputs[:1], inputs[:1]])))])
    return tape


def on_tape(tape: Tape, inputs: torch.Tensor, v: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients (n, K, numel) of Σ ⟨v[i, k], logits_i⟩ by parameter, in one pass or, where the tape asks for it, example by example."""
    if tape.one_by_one and len(inputs) > 1:
        each = [on_tape(tape, inputs[i : i + 1], v[i : i + 1]) for i in range(len(inputs))]
        return {name: torch.cat([one[name] for one in each]) for name in each[0]}
    with tape.recording(len(inputs)):
        z = tape.model(inputs)
    return {name: torch.stack([use.dense() for use in uses]).sum(0).flatten(2) for name, uses in tape.gradients(z, v)}


def by_autograd(model: nn.Module, inputs: torch.Tensor, v: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same, one example and one row after the other."""
    parameters = dict(model.named_parameters())
    found = {name: torch.zeros(*v.shape[:2], p.numel(), dtype=p.dtype) for name, p in parameters.items()}
    for i in range(len(inputs)):
        for k in range(v.shape[1]):
            gradients = torch.autograd.grad((model(inputs[i : i + 1])[0] * v[i, k]).sum(), list(parameters.values()))
            for name, gradient in zip(parameters, gradients, strict=True):
                found[name][i, k] = gradient.flatten()
    return found


def test_one_backward_per_row(monkeypatch):
    model, calls = tiny.seeded(tiny.CalledTwice), []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or grad(*a, **k))
    tape = taught(model, torch.randn(5, 6))
    for rows in (1, 2):
        with tape.recording(5):
            z = model(torch.randn(5, 6))
        calls.clear()
        list(tape.gradients(z, torch.randn(5, rows, 3)))
        assert len(calls) == rows


class OneIsRead(nn.Module):
    """Layers over all positions, of which the last one is read; one of them is changed in place and one looked up once for all examples."""

    def __init__(self):
        super().__init__()
        self.places, self.place = nn.Embedding(7, 4), nn.Linear(4, 4)
        self.first, self.second, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = x + self.place(torch.tanh(self.places(torch.arange(x.shape[1])[None])))
        x = x + torch.tanh(self.first(input=x).mul_(2))
        return self.out(torch.tanh(self.second(x))[:, -1])


def test_a_layer_of_which_one_position_is_read_works_back_from_there_alone(monkeypatch):
    model = tiny.seeded(OneIsRead).double()
    draw = torch.Generator().manual_seed(1)
    inputs, v = torch.randn(4, 7, 4, generator=draw, dtype=torch.float64), torch.randn(4, 2, 3, generator=draw, dtype=torch.float64)
    tape, sizes, back = taught(model, inputs), [], gradients.nonzero_rows
    monkeypatch.setattr(gradients, "nonzero_rows", lambda rows: sizes.append(int(back(rows).sum())) or back(rows))
    found, expected = on_tape(tape, inputs, v), by_autograd(model, inputs, v)
    assert sizes == [4] * 6  # of 28 positions those that are read, for both rows: of the second layer and of the two behind it
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **EXACT)


def test_a_hook_of_the_caller_on_a_linear_layer_has_its_say():
    """What it makes of the output counts in what the layers below receive; its own layer's gradient is seen to differ elsewhere."""
    model = tiny.seeded(OneIsRead).double()
    model.second.register_forward_hook(lambda module, inputs, output: 3 * output)
    inputs, v = torch.randn(4, 7, 4, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64)
    found, expected = on_tape(taught(model, inputs), inputs, v), by_autograd(model, inputs, v)
    torch.testing.assert_close(found["first.weight"], expected["first.weight"], **EXACT)


class TwoSides(nn.Module):
    def __init__(self):
        super().__init__()
        self.both = nn.Bilinear(3, 3, 2)

    def forward(self, x):
        return self.both(x, torch.tanh(x))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's, of what it vectorises in its own way
@pytest.mark.parametrize(("cached", "lengths"), [(1, {7}), (20, {2, 3}), (2**19, {1})])  # the layers hold 42 and 28 numbers
def test_uses_come_whole_or_a_few_examples_at_a_time(cached, lengths, monkeypatch):
    monkeypatch.setattr(layers, "CACHED", cached)
    model = tiny.seeded(lambda: nn.Sequential(nn.Linear(4, 3), TwoSides(), nn.Linear(2, 3))).double()
    inputs, v = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 2, 3, dtype=torch.float64)
    tape = taught(model, inputs)
    with tape.recording(7):
        z = model(inputs)
    seen = set()
    for _, uses in tape.gradients(z, v):
        parts = list(uses.parts())
        seen.add(len(parts))
        assert [i for some, _ in parts for i in range(7)[some]] == list(range(7))
        torch.testing.assert_close(torch.cat([few[0].dense() for _, few in parts]), uses[0].dense(), **EXACT)
    assert seen == lengths


class LastState(nn.Module):
    """What a recurrent layer says at its end: a tuple of tuples, the last of which has the examples on its second axis."""

    def __init__(self, kind):
        super().__init__()
        self.inner = kind(3, 4, batch_first=True)

    def forward(self, x):
        out, state = self.inner(x)
        state = state[0] if isinstance(state, tuple) else state
        return out.mean(1) + state[-1]


WITHOUT_FORMULA = {
    "Conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten()), (2, 4)),
    "Bilinear": (TwoSides, (3,)),
    "grouped convolution": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten()), (2, 5, 5)),
    "convolution with named padding": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding="same"), nn.Flatten()), (2, 4, 4)),
    "convolution with reflected padding": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.Flatten()), (2, 4, 4)),
    "transposed convolution": (lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.Flatten()), (2, 3, 3)),
    "layer norm over two axes": (lambda: nn.Sequential(nn.LayerNorm((3, 4)), nn.Flatten()), (3, 4)),
    "group norm": (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Flatten()), (4, 3)),
    "batch norm": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), (4,)),
    "PReLU": (lambda: nn.Sequential(nn.Linear(4, 4), nn.PReLU(4), nn.Linear(4, 3)), (4,)),
    "GRU": (lambda: LastState(nn.GRU), (5, 3)),
    "LSTM": (lambda: LastState(nn.LSTM), (5, 3)),
}


@pytest.mark.filterwarnings("ignore:slower and as exact:UserWarning")
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's, of what it vectorises in its own way
@pytest.mark.parametrize(("make", "shape"), WITHOUT_FORMULA.values(), ids=WITHOUT_FORMULA.keys())
def test_a_layer_without_a_formula_is_run_again_and_is_exact(make, shape):
    model = tiny.seeded(make).double()
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(5, *shape, generator=draw, dtype=torch.float64)
    tape = taught(model, inputs)
    assert tape.without_formula()
    with torch.no_grad():
        c = model(inputs).shape[1]
    v = torch.randn(5, 2, c, generator=draw, dtype=torch.float64)
    found, expected = on_tape(tape, inputs, v), by_autograd(model, inputs, v)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **EXACT)


def test_layers_with_a_formula_are_not_run_again():
    for model in (tiny.bert(), tiny.gpt2(), tiny.ConvNet()):
        assert Tape(model, [name for name, _ in model.named_parameters()]).without_formula() == {}


class CannotBeVectorised(nn.Module):
    """Asks for a number in the middle: torch.func.vmap has none to give."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        z = x @ self.weight.T
        return z * 2 if float(z.detach().sum()) > 0 else torch.tanh(z)


def test_what_cannot_be_vectorised_goes_one_by_one_and_says_so_once():
    """A branch that depends on the sum over the batch is no single example's; here each example is asked alone, as it would be by its owner."""
    model = tiny.seeded(CannotBeVectorised).double()
    draw = torch.Generator().manual_seed(1)
    inputs, v = torch.randn(1, 4, generator=draw, dtype=torch.float64), torch.randn(1, 2, 3, generator=draw, dtype=torch.float64)
    tape = taught(model, inputs)
    with pytest.warns(UserWarning, match="slower and as exact: a CannotBeVectorised cannot be vectorised .*: one example at a time") as said:
        found = on_tape(tape, inputs, v)
        on_tape(tape, inputs, v)
    assert len(said) == 1
    torch.testing.assert_close(found["weight"], by_autograd(model, inputs, v)["weight"], **EXACT)


class ExamplesSecond(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):  # (n, t, 4) -> time first, as old recurrent code has it
        return self.inner(x.transpose(0, 1)).sum(0)


@pytest.mark.parametrize("n", [3, 5])
def test_examples_elsewhere_than_on_the_first_axis_are_noticed(n):
    """Also where there are as many examples as positions, so that the number of rows says nothing."""
    model = ExamplesSecond()
    tape = taught(model, torch.randn(n, 5, 4))
    assert tape.one_by_one
    with (
        pytest.raises(UnsupportedModule, match=r"a Linear of the model \(parameter 'inner.weight'\) works once for the whole batch.*batch_size=1"),
        tape.recording(n),
    ):
        model(torch.randn(n, 5, 4))
    assert not model.inner._forward_hooks


def test_a_single_position_before_the_examples_is_noticed():
    """A first axis of 1 may be a table of positions that all examples share, or the time axis in front of them."""
    model = ExamplesSecond().double()
    inputs, v = torch.randn(3, 1, 4, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
    found = on_tape(taught(model, inputs), inputs, v)
    torch.testing.assert_close(found["inner.weight"], by_autograd(model, inputs, v)["inner.weight"], **EXACT)


def test_recording_gives_flags_and_hooks_back_also_after_an_interrupt():
    model = tiny.seeded(tiny.CalledTwice)
    model.out.bias.requires_grad_(False)
    asked = [p.requires_grad for p in model.parameters()]
    tape = Tape(model, ["again.weight"])
    with pytest.raises(KeyboardInterrupt), tape.recording(2):
        assert not any(p.requires_grad for p in model.parameters())
        raise KeyboardInterrupt
    assert [p.requires_grad for p in model.parameters()] == asked
    assert not any(m._forward_hooks for m in model.modules())


def test_teaching_gives_flags_and_hooks_back_also_after_an_interrupt():
    model = tiny.seeded(tiny.CalledTwice)
    model.out.bias.requires_grad_(False)
    asked = [p.requires_grad for p in model.parameters()]
    tape = Tape(model, ["again.weight"])

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tape.learn([(lambda: model(torch.randn(1, 6)), stop)])
    assert [p.requires_grad for p in model.parameters()] == asked
    assert not any(m._forward_hooks for m in model.modules())


def test_a_parameter_moves_up_to_the_model_and_no_further():
    model = tiny.bert()
    name = "bert.encoder.layer.1.output.dense.weight"
    tape = Tape(model, [name])
    owners = []
    while tape.widen(name):
        owners.append(next(iter(tape.without_formula())))
    assert owners == ["BertOutput", "BertLayer", "ModuleList", "BertEncoder", "BertModel", "BertForSequenceClassification"]
    shared = Tape(tiny.TwoLinearsOneWeight(), ["first.weight"])  # two owners: the smallest module that holds both
    assert shared.widen("first.weight")
    assert shared.without_formula() == {"TwoLinearsOneWeight": ["first.weight"]}
    assert not shared.widen("first.weight")
