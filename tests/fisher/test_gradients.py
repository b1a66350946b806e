"""Two thin sides of a gradient against the gradient itself."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

from npeff_nb.fisher.gradients import Outer, Tape, UnsupportedModule, small_grams


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


def test_one_backward_per_row(monkeypatch):
    model, calls = tiny.seeded(tiny.CalledTwice), []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or grad(*a, **k))
    tape = Tape(model, [name for name, _ in model.named_parameters()])
    for rows in (1, 2):
        with tape.recording(5):
            z = model(torch.randn(5, 6))
        calls.clear()
        list(tape.gradients(z, torch.randn(5, rows, 3)))
        assert len(calls) == rows


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            nn.Sequential(nn.Conv1d(2, 3, 1), nn.Flatten()),
            r"parameter '0.weight' belongs to a Conv1d \(module '0'\).*known are .*Linear.*Leave it out",
        ),
        (nn.Bilinear(2, 2, 2), r"'weight' belongs to a Bilinear \(module 'model'\)"),
    ],
)
def test_a_layer_without_a_rule_is_named(module, words):
    with pytest.raises(UnsupportedModule, match=words):
        Tape(module, [name for name, _ in module.named_parameters()])


@pytest.mark.parametrize("settings", [{"groups": 2}, {"padding": "same"}, {"padding_mode": "reflect", "padding": 1}])
def test_a_convolution_that_the_rule_does_not_cover_is_refused(settings):
    model = nn.Sequential(nn.Conv2d(2, 4, 3, **settings), nn.Flatten())
    tape = Tape(model, ["0.weight"])
    with tape.recording(2):
        z = model(torch.randn(2, 2, 5, 5))
    with pytest.raises(NotImplementedError, match="Conv2d with groups, named padding or a padding mode other than zeros"):
        list(tape.gradients(z, torch.randn(2, 1, z.shape[1])))


def test_a_layer_norm_over_two_axes_is_refused():
    model = nn.Sequential(nn.LayerNorm((3, 4)), nn.Flatten())
    tape = Tape(model, ["0.weight"])
    with tape.recording(2):
        z = model(torch.randn(2, 3, 4))
    with pytest.raises(NotImplementedError, match="LayerNorm over 2 axes"):
        list(tape.gradients(z, torch.randn(2, 1, 12)))


class ExamplesSecond(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):  # (n, t, 4) -> time first, as old recurrent code has it
        return self.inner(x.transpose(0, 1)).sum(0)


def test_examples_elsewhere_than_on_the_first_axis_are_refused():
    model = ExamplesSecond()
    tape = Tape(model, ["inner.weight"])
    with pytest.raises(UnsupportedModule, match="saw 5 rows for 3 examples"), tape.recording(3):
        model(torch.randn(3, 5, 4))
    assert not model.inner._forward_hooks


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
