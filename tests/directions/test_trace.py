"""The trace against derivatives taken one at a time: by autograd over all parameters, and by moving one thing and running the model again."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import torch
import transformers
import twins
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from npeff_nb.directions.lift import random_direction
from npeff_nb.directions.trace import INDEX, trace, trace_direction
from npeff_nb.fisher.factors import Recipe
from npeff_nb.fisher.outputs import MaskedToken, NextToken, Output, Own, SequenceClasses
from npeff_nb.fisher.subject import Subject

TEXT = "who played the king in the city ?"
STEP = 1e-5
"""Of central differences in float64: their error is about its square times a third derivative, some 1e-9 of a contribution."""


def made(family: str, **settings) -> nn.Module:
    config = getattr(transformers, f"{family}Config")(
        vocab_size=tiny.N_TOKENS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=40, pad_token_id=0,
        num_labels=3, **settings,
    )  # fmt: skip
    return getattr(transformers, f"{family}ForSequenceClassification")(config)


def adapted() -> nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["query", "output.dense"], task_type="SEQ_CLS")
    return peft.get_peft_model(tiny.bert(), config).requires_grad_()


CLASSIFIERS = {
    "bert": tiny.bert,
    "bert, sdpa": lambda: tiny.bert(attention="sdpa"),
    "roberta": tiny.roberta,
    "distilbert": tiny.distilbert,
    "gpt2": lambda: tiny.gpt2_for("ForSequenceClassification"),
    "llama": lambda: tiny.llama_for("SequenceClassification"),
    "gpt-neox, attention and MLP side by side": lambda: made("GPTNeoX", intermediate_size=24),
    "opt, positions in a list": lambda: made("OPT", ffn_dim=24, word_embed_proj_dim=16),
    "albert, one block called twice": lambda: made("Albert", intermediate_size=24, embedding_size=8),
    "bert, with adapters": lambda: adapted(),
}
LANGUAGE_MODELS = {
    "gpt2, next token": (lambda: tiny.gpt2_for("LMHeadModel"), NextToken()),
    "llama, next token": (lambda: tiny.llama_for("CausalLM"), NextToken()),
    "bert, masked token": (lambda: tiny.bert_for("MaskedLM", vocab_size=tiny.N_TOKENS + 1), MaskedToken()),
}
EVERY = {name: (make, SequenceClasses()) for name, make in CLASSIFIERS.items()} | LANGUAGE_MODELS


def subject_of(model: nn.Module, output: Output | None = None, texts: list[str] | None = None) -> Subject:
    output = output or SequenceClasses()
    masked = isinstance(output, MaskedToken)
    tokenizer = tiny.tokenizer(mask=masked, types="Roberta" not in type(model).__name__ and "Distil" not in type(model).__name__)
    texts = texts or [TEXT.replace("king", "[MASK]") if masked else TEXT, "what is [MASK]" if masked else "when"]
    batches, _ = output.prepare(model, tokenizer, texts, 1)
    return Subject(model, batches, output, Recipe(), tokenizer)


def exact(norm: LlamaRMSNorm) -> nn.RMSNorm:
    """The same norm in the model's own precision."""
    made = nn.RMSNorm(len(norm.weight), norm.variance_epsilon)
    made.weight = norm.weight
    return made.eval()


def case(name: str, seed: int = 0) -> tuple[Subject, dict[str, torch.Tensor]]:
    make, output = EVERY[name]
    model = tiny.spread(make()).double()
    for block in blocks_of(model) if "llama" in name else []:
        # Llama's own norms compute in float32 whatever the model's precision, too coarse for central differences.
        for place in ("input_layernorm", "post_attention_layernorm"):
            setattr(block, place, exact(getattr(block, place)))
        model.model.norm = exact(model.model.norm) if isinstance(model.model.norm, LlamaRMSNorm) else model.model.norm
    return subject_of(model, output), random_direction(dict(model.named_parameters()), seed)


def derivative(subject: Subject, direction: dict[str, torch.Tensor], row: int = 0) -> np.ndarray:
    """dz (C,) by one backward a class over all parameters."""
    there = dict(subject.model.named_parameters())
    z = subject.raw_logits(np.array([row]))[0]
    found = [torch.autograd.grad(one, [there[name] for name in direction], retain_graph=True, allow_unused=True) for one in z]
    return np.array([sum(float((g * v).sum()) for g, v in zip(of, direction.values(), strict=True) if g is not None) for of in found])


def introduced(table):
    return table[table["kind"] == "introduced"]


@pytest.mark.parametrize("name", EVERY)
def test_introduced_parts_add_up_to_the_derivative(name):
    subject, direction = case(name)
    found = trace_direction(subject, direction, 0)
    expected = derivative(subject, direction)
    np.testing.assert_allclose(found.derivative, expected, rtol=1e-8)
    np.testing.assert_allclose(introduced(found.table)[found.classes].sum(), expected, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found.logits, subject.raw_logits(np.array([0]))[0].detach(), rtol=1e-8)  # eager and sdpa differ by rounding
    assert found.tokens == subject.tokenizer.convert_ids_to_tokens(subject.batches.encoded["input_ids"][0])


@pytest.mark.parametrize("name", EVERY)
def test_every_boundary_carries_what_was_introduced_below_and_lacks_what_comes_above(name):
    subject, direction = case(name)
    found = trace_direction(subject, direction, 0)
    height = found.table["layer"].astype("float").fillna(found.n_layers)
    height[found.table["module"].str.startswith("embedding")] = -1
    for boundary in range(found.n_layers + 1):
        total = found.totals[found.totals["boundary"] == boundary][found.classes].sum()
        above = introduced(found.table[height >= boundary])[found.classes].sum()
        np.testing.assert_allclose(total + above, found.derivative, rtol=1e-8, atol=1e-12)
    through = found.table[(found.table["module"] == "head") & (found.table["kind"] == "passed on")]
    assert len(through) == len(found.tokens)
    np.testing.assert_allclose(through[found.classes], found.totals[found.totals["boundary"] == found.n_layers][found.classes], rtol=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_every_position_passes_on_what_it_receives(name):
    """Into position t of a block's end: all rows with that target.  Out of position s of its beginning: passed on by attention, or past it."""
    subject, direction = case(name)
    found = trace_direction(subject, direction, 0)
    T, classes = len(found.tokens), found.classes
    totals = found.totals[classes].to_numpy().reshape(found.n_layers + 1, T, -1)
    for layer in range(found.n_layers):
        rows = found.table[found.table["layer"] == layer]
        attention = rows["module"].str.startswith("attention")
        halfway = rows[attention].groupby("target")[classes].sum()
        mlp = rows[rows["module"] == "MLP"]
        onward = mlp[mlp["kind"] != "introduced"].groupby("target")[classes].sum()
        np.testing.assert_allclose(halfway, onward, rtol=1e-7, atol=1e-10)
        arriving = onward + introduced(rows[~attention]).groupby("target")[classes].sum()
        np.testing.assert_allclose(arriving, totals[layer + 1], rtol=1e-7, atol=1e-10)
        leaving = rows[attention & (rows["kind"] != "introduced")].groupby("source")[classes].sum()
        np.testing.assert_allclose(leaving, totals[layer], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("matrices", [True, False], ids=["matrices alone", "no matrices"])
def test_directions_over_a_part_of_the_parameters(name, matrices):
    subject, direction = case(name)
    some = {n: v for n, v in direction.items() if (v.ndim > 1) == matrices}
    found = trace_direction(subject, some, 0)
    np.testing.assert_allclose(introduced(found.table)[found.classes].sum(), derivative(subject, some), rtol=1e-8, atol=1e-12)
    unsplit = found.table[(found.table["module"] == "attention") & (found.table["kind"] == "introduced") & found.table["head"].isna()]
    if matrices and name != "bert, with adapters":  # an adapted output is not split by head
        assert unsplit.empty


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_float32(name):
    """The sums of the same model in float32: 1e-4 of what flows is many roundings and nothing else."""
    subject, direction = case(name)
    expected = derivative(subject, direction)
    subject = subject.with_model(tiny.spread(CLASSIFIERS[name]()))
    found = trace_direction(subject, direction, 0)
    flows = found.totals.groupby("boundary")[found.classes].agg(lambda x: x.abs().sum()).to_numpy().max()
    np.testing.assert_allclose(found.derivative, expected, atol=1e-4 * flows)
    np.testing.assert_allclose(introduced(found.table)[found.classes].sum(), expected, atol=1e-4 * flows)


# ---------------------------------------------------------------------------------------------------- single edges, one at a time


def blocks_of(model: nn.Module) -> nn.ModuleList:
    return max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)


def moved(subject: Subject, direction: dict[str, torch.Tensor], step: float) -> Subject:
    other = copy.deepcopy(subject.model)
    with torch.no_grad():
        for name, p in other.named_parameters():
            if name in direction:
                p += step * direction[name]
    return subject.with_model(other)


def states(subject: Subject) -> list[torch.Tensor]:
    """What enters each block, (T, width)."""
    kept: list[torch.Tensor] = []

    def keep(module, args, kwargs):
        kept.append((args[0] if args else kwargs["hidden_states"])[0].detach())

    hooks = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks_of(subject.model)]
    with torch.no_grad():
        subject.raw_logits(np.array([0]))
    for hook in hooks:
        hook.remove()
    return kept


def logits_with(subject: Subject, module: nn.Module, change, at_input: bool = False) -> torch.Tensor:
    """z (C,) when ``change`` replaces what a module gives (or gets)."""
    if at_input:
        hook = module.register_forward_pre_hook(lambda m, args: (change(args[0]), *args[1:]))
    else:
        hook = module.register_forward_hook(lambda m, args, out: (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out))
    with torch.no_grad():
        z = subject.raw_logits(np.array([0]))[0]
    hook.remove()
    return z


def slope(f) -> np.ndarray:
    return ((f(STEP) - f(-STEP)) / (2 * STEP)).numpy()


def at(t: int, new: torch.Tensor):
    """Replaces position t of (1, T, d)."""

    def replaced(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[0, t] = new
        return x

    return replaced


def given_by(subject: Subject, module: nn.Module, at_input: bool = False) -> torch.Tensor:
    """What a module gives (or gets), (T, width)."""
    kept: list[torch.Tensor] = []
    logits_with(subject, module, lambda x: kept.append(x[0]) or x, at_input)
    return kept[0]


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "llama"])
def test_totals_are_what_a_position_s_change_does(name):
    """Only position t of what enters a block is set to what the moved model has there: the logits move by the total."""
    subject, direction = case(name)
    found = trace_direction(subject, direction, 0)
    up, down = (states(moved(subject, direction, step)) for step in (STEP, -STEP))
    for layer, block in enumerate(blocks_of(subject.model)):
        for t in (0, 3, len(found.tokens) - 1):
            z = [logits_with(subject, block, at(t, h[layer][t]), at_input=True) for h in (up, down)]
            row = found.totals[(found.totals["boundary"] == layer) & (found.totals["position"] == t)]
            np.testing.assert_allclose(row[found.classes].to_numpy()[0], ((z[0] - z[1]) / (2 * STEP)).numpy(), rtol=1e-5, atol=1e-8)


OUTPUT = {
    "bert": lambda block: block.attention.output.dense,
    "distilbert": lambda block: block.attention.out_lin,
    "gpt2": lambda block: block.attn.c_proj,
    "llama": lambda block: block.self_attn.o_proj,
}


@pytest.mark.parametrize("name", OUTPUT)
def test_an_edge_that_attention_passes_on(name):
    """Position s alone enters the block moved; of attention's heads, only head h at position t is let through, all else stays as it was."""
    subject, direction = case(name)
    found = trace_direction(subject, direction, 0)
    up, down = (states(moved(subject, direction, step)) for step in (STEP, -STEP))
    width = 16 // found.n_heads
    for layer, block in enumerate(blocks_of(subject.model)):
        output = OUTPUT[name](block)
        still = given_by(subject, output, at_input=True)
        for s, t, h in [(1, 4, 0), (1, 4, 1), (3, 3, 0), (0, 5, 1), (4, 2, 1)]:
            z, part = [], slice(h * width, (h + 1) * width)
            for states_of in (up, down):
                enters = at(s, states_of[layer][s])
                hook = block.register_forward_pre_hook(lambda m, args, enters=enters: (enters(args[0]), *args[1:]))
                heads = given_by(subject, output, at_input=True)
                hook.remove()
                let_through = still.clone()
                let_through[t, part] = heads[t, part]
                z.append(logits_with(subject, output, at(t, let_through[t]), at_input=True))
            expected = ((z[0] - z[1]) / (2 * STEP)).numpy()
            rows = found.table.query("layer == @layer and module == 'attention' and kind == 'passed on' and head == @h")
            row = rows[(rows["source"] == s) & (rows["target"] == t)]
            if name in ("gpt2", "llama") and s > t:
                assert row.empty
                np.testing.assert_array_equal(expected, 0)
            else:
                np.testing.assert_allclose(row[found.classes].to_numpy()[0], expected, rtol=1e-5, atol=1e-8)


def test_an_edge_that_attention_introduces():
    """By hand from BERT's matrices: of p v U over all heads and pairs of positions, only one term has its parameters moved."""
    subject, direction = case("bert")
    found = trace_direction(subject, direction, 0)
    inputs = states(subject)
    for layer, block in enumerate(blocks_of(subject.model)):
        prefix = f"bert.encoder.layer.{layer}.attention."

        def term(h: int, t: int, s: int, step: float, layer=layer, prefix=prefix) -> torch.Tensor:
            there = {n.removeprefix(prefix): p.detach() + step * direction[n] for n, p in subject.model.named_parameters() if n.startswith(prefix)}
            part = slice(8 * h, 8 * h + 8)
            q, k, v = (inputs[layer] @ there[f"self.{x}.weight"][part].T + there[f"self.{x}.bias"][part] for x in ("query", "key", "value"))
            return torch.softmax(q @ k.T / 8**0.5, 1)[t, s] * v[s] @ there["output.dense.weight"][:, part].T

        for h, t, s in [(0, 2, 2), (1, 2, 5), (0, 7, 0)]:

            def z(step: float, h=h, t=t, s=s, term=term, block=block) -> torch.Tensor:
                shift = term(h, t, s, step) - term(h, t, s, 0)
                dense = block.attention.output.dense
                return logits_with(subject, dense, at(t, given_by(subject, dense)[t] + shift))

            rows = found.table.query("layer == @layer and module == 'attention' and kind == 'introduced' and head == @h")
            row = rows[(rows["source"] == s) & (rows["target"] == t)][found.classes].to_numpy()[0]
            np.testing.assert_allclose(row, slope(z), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "module", "kind", "parts", "read"),
    [
        ("bert", "MLP", "passed on", ("intermediate", "output.dense"), lambda b: b.output.dense),
        ("gpt2", "MLP", "passed on", ("mlp", "ln_2"), lambda b: b.mlp.c_proj),
        ("llama", "MLP", "passed on", ("mlp", "post_attention_layernorm"), lambda b: b.mlp.down_proj),
        ("llama", "MLP", "introduced", ("mlp",), lambda b: b.mlp.down_proj),
        ("bert", "attention norm", "introduced", ("attention.output.LayerNorm",), lambda b: b.attention.output.LayerNorm),
        ("bert", "MLP norm", "introduced", ("output.LayerNorm",), lambda b: b.output.LayerNorm),
        ("llama", "MLP norm", "introduced", ("post_attention_layernorm",), lambda b: b.post_attention_layernorm),
    ],
)
def test_a_part_that_works_position_by_position(name, module, kind, parts, read):
    """Position t of what a module gives is taken from a model in which only what the part is made of was moved."""
    subject, direction = case(name)
    found = trace_direction(subject, direction, 0)
    layer, t = 1, 3
    prefix = next(n for n, m in subject.model.named_modules() if m is blocks_of(subject.model)[layer]) + "."
    stands = {n: any(n.startswith(prefix + part) for part in parts) for n in direction}
    # What is passed on: all that was moved before, but nothing of the MLP's own, nor of the norm that stands before it.
    own = {n: v for n, v in direction.items() if stands[n] == (kind == "introduced")}

    def z(step: float) -> torch.Tensor:
        other = moved(subject, own, step)
        gives = given_by(other, read(blocks_of(other.model)[layer]))
        return logits_with(subject, read(blocks_of(subject.model)[layer]), at(t, gives[t]))

    rows = found.table[(found.table["layer"] == layer) & (found.table["module"] == module) & (found.table["kind"] == kind)]
    row = rows[rows["target"] == t]
    if module == "attention norm":
        row = row[row["source"] == t]
    np.testing.assert_allclose(row[found.classes].to_numpy()[0], slope(z), rtol=1e-5, atol=1e-8)


def test_a_norm_before_attention_reaches_other_positions():
    """GPT-2's first norm moved at position s alone: what arrives at all others went through attention's edges."""
    subject, direction = case("gpt2")
    found = trace_direction(subject, direction, 0)
    layer, s = 1, 2
    block = blocks_of(subject.model)[layer]
    own = {n: v for n, v in direction.items() if n.startswith("transformer.h.1.ln_1")}

    def z(step: float) -> torch.Tensor:
        other = moved(subject, own, step)
        return logits_with(subject, block.ln_1, at(s, given_by(other, blocks_of(other.model)[layer].ln_1)[s]))

    rows = found.table[(found.table["layer"] == layer) & (found.table["module"] == "attention norm")]
    assert rows["kind"].eq("introduced").all()
    assert set(rows["target"][rows["source"] == s]) == set(range(s, len(found.tokens)))
    np.testing.assert_allclose(rows[rows["source"] == s][found.classes].sum(), slope(z), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "part", "module"),
    [
        ("bert", "embeddings.word_embeddings.weight", "embedding"),
        ("bert", "embeddings.LayerNorm.bias", "embedding norm"),
        ("bert", "layer.1.attention.self.query.weight", "attention"),
        ("bert", "layer.1.attention.output.dense.bias", "attention"),
        ("bert", "bert.pooler.dense.weight", "head"),
        ("gpt2", "h.0.mlp.c_fc.weight", "MLP"),
        ("gpt2", "transformer.ln_f.weight", "head norm"),
        ("gpt2", "score.weight", "head"),
        ("gpt2, next token", "wte.weight", None),  # tied: below and above
        ("llama", "layers.0.input_layernorm.weight", "attention norm"),
        ("llama", "layers.0.post_attention_layernorm.weight", "MLP norm"),
    ],
)
def test_a_parameter_moved_alone_enters_where_it_stands(name, part, module):
    subject, direction = case(name)
    alone = {n: v for n, v in direction.items() if n.endswith(part)}
    assert len(alone) == 1
    found = trace_direction(subject, alone, 0)
    entered = introduced(found.table)
    entered = entered[entered[found.classes].abs().max(axis=1) > 0]
    assert set(entered["module"]) == ({module} if module else {"embedding", "head"})
    np.testing.assert_allclose(entered[found.classes].sum(), derivative(subject, alone), rtol=1e-8)
    layers = [int(x) for x in part.split(".") if x.isdigit()]
    assert set(entered["layer"].dropna()) == set(layers)


# ---------------------------------------------------------------------------------------------------- the table, the question, the model


def test_one_row_an_edge():
    subject, direction = case("gpt2")
    found = trace_direction(subject, direction, 0)
    assert list(found.table.columns) == [*INDEX, *found.classes]
    assert list(found.totals.columns) == ["boundary", "position", "token", *found.classes]
    assert not found.table.duplicated(["layer", "module", "head", "source", "target", "kind"]).any()
    assert (found.n_layers, found.n_heads) == (2, 2)
    tokens = np.array(found.tokens)
    placed = found.table.dropna(subset=["source", "target"])
    assert (placed["source_token"].to_numpy() == tokens[placed["source"].to_numpy(int)]).all()
    assert (placed["target_token"].to_numpy() == tokens[placed["target"].to_numpy(int)]).all()
    assert (placed["source"] <= placed["target"]).all()  # a causal mask leaves no edge from later tokens
    T = len(tokens)
    heads = found.table[(found.table["module"] == "attention") & found.table["head"].notna()]
    assert len(heads) == 2 * 2 * 2 * T * (T + 1) // 2  # kinds, layers, heads, pairs
    assert found.table["layer"].isna().equals(found.table["module"].str.startswith(("embedding", "head")))


def test_rows_texts_and_pairs(tokenizer):
    subject = subject_of(tiny.bert().double())
    direction = random_direction(dict(subject.model.named_parameters()))
    by_row, by_text = trace_direction(subject, direction, 0), trace_direction(subject, direction, TEXT)
    assert by_row.table.equals(by_text.table)
    pair = trace_direction(subject, direction, ("who is who", "the king"))
    assert pair.tokens == tokenizer.convert_ids_to_tokens(tokenizer("who is who", "the king")["input_ids"])
    alone = trace_direction(subject, direction, 1)
    assert alone.tokens == ["[CLS]", "when", "[SEP]"]


def test_classes_by_number_and_name():
    subject, direction = case("bert")
    every, some = trace_direction(subject, direction, 0), trace_direction(subject, direction, 0, classes=["LABEL_2", 0])
    assert some.classes == ["LABEL_2", "LABEL_0"]
    np.testing.assert_allclose(some.derivative, every.derivative[[2, 0]])
    np.testing.assert_allclose(some.table[some.classes], every.table[some.classes], rtol=1e-9, atol=1e-15)


def test_classes_of_a_vocabulary():
    model = tiny.spread(tiny.gpt2_for("LMHeadModel", vocab_size=60)).double()
    subject = subject_of(model, NextToken())
    direction = random_direction(dict(model.named_parameters()))
    z = subject.raw_logits(np.array([0]))[0]
    every = trace_direction(subject, direction, 0)  # more than can all be shown: the likeliest
    assert every.logits == pytest.approx(z.detach().sort(descending=True).values[:8].numpy())
    one = trace_direction(subject, direction, 0, classes=["king"])
    number = subject.tokenizer.convert_tokens_to_ids("king")
    assert one.classes == ["king"]
    assert one.derivative == pytest.approx(derivative(subject, direction)[[number]])


def test_a_component(npeff):
    found = trace(npeff, 1, 0)
    direction = npeff.direction(1)
    assert found.derivative == pytest.approx(derivative(npeff.subject, direction), rel=1e-3)
    by_text = trace(npeff, 1, npeff.examples["text"][0], classes=[0])
    assert by_text.derivative == pytest.approx(found.derivative[:1], rel=1e-3)
    other = tiny.bert(seed=1)
    elsewhere = trace(npeff, 1, 0, model=other)
    assert elsewhere.derivative == pytest.approx(derivative(npeff.subject.with_model(other), npeff.direction(1, other)), rel=1e-3)
    with pytest.raises(ValueError, match=r"component 40 does not exist"):
        trace(npeff, 40, 0)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_the_model_is_left_as_it_was(name):
    subject, direction = case(name)
    subject.model.requires_grad_(name != "gpt2")
    before, attention = twins.state(subject.model), subject.model.config._attn_implementation
    with torch.no_grad():  # a caller's mode
        trace_direction(subject, direction, 0)
        assert not torch.is_grad_enabled()
    twins.assert_untouched(subject.model, before)
    assert subject.model.config._attn_implementation == attention


def test_the_model_is_left_as_it_was_after_an_error(monkeypatch):
    subject, direction = case("bert")
    before = twins.state(subject.model)
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(*arguments)

    forward = subject.model.classifier.forward
    subject.model.classifier.forward = interrupted
    with pytest.raises(KeyboardInterrupt):
        trace_direction(subject, direction, 0)
    del subject.model.classifier.forward
    twins.assert_untouched(subject.model, before)
    assert subject.model.config._attn_implementation == "eager"
    assert all("model" not in name for name, _ in subject.model.named_parameters())
    assert trace_direction(subject, direction, 0).derivative == pytest.approx(derivative(subject, direction))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"example": 7}, r"example 7 does not exist: there are 2 \(0 to 1\)"),
        ({"example": -1}, r"example -1 does not exist"),
        ({"example": 1.5}, r"example=1.5: give a row's number, a text, or a text and its pair"),
        ({"example": ("a", "b", "c")}, "give a row's number"),
        ({"classes": ["LABEL_7"]}, r"class 'LABEL_7' does not exist: give a number from 0 to 2 or one of LABEL_0, LABEL_1, LABEL_2"),
        ({"classes": [3]}, "class 3 does not exist"),
        ({"classes": []}, "give at least one class"),
        ({"classes": [1, "LABEL_1"]}, "and none twice"),
        ({"direction": {"nowhere": torch.ones(2)}}, r"moves 'nowhere' of shape \(2,\); the model has no such parameter"),
        ({"direction": {"classifier.bias": torch.ones(2)}}, r"the model has \(3,\)"),
        ({"direction": {"classifier.bias": torch.tensor([1.0, torch.nan, 1.0])}}, "not finite: check the direction"),
    ],
)
def test_what_cannot_be_asked(arguments, words):
    subject, direction = case("bert")
    with pytest.raises(ValueError, match=words):
        trace_direction(subject, **({"direction": direction, "example": 0} | arguments))


class Mixes(nn.Module):
    """Lets positions speak with each other past attention."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + self.inner(x).mean(1, keepdim=True)


def test_models_that_cannot_be_followed():
    subject, direction = case("bert")
    subject.model.train()
    with pytest.raises(ValueError, match="is in training mode"):
        trace_direction(subject, direction, 0)
    subject.model.eval()

    subject.model.bert.encoder.layer[1].intermediate = Mixes(subject.model.bert.encoder.layer[1].intermediate).eval()
    direction = random_direction(dict(subject.model.named_parameters()))
    with pytest.raises(ValueError, match=r"does not add up: .* goes ways that are not followed"):
        trace_direction(subject, direction, 0)

    t5 = subject_of(tiny.t5().double(), NextToken())
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder: a trace follows transformers with one list of blocks"):
        trace_direction(t5, random_direction(dict(t5.model.named_parameters())), 0)

    bag = tiny.seeded(lambda: nn.Sequential(nn.EmbeddingBag(60, 3)))
    subject = subject_of(bag, Own(lambda model, batch: model(batch["input_ids"])))
    with pytest.raises(ValueError, match=r"Sequential has no list of blocks \(torch.nn.ModuleList\)"):
        trace_direction(subject, random_direction(dict(bag.named_parameters())), 0)


def test_a_zero_direction_has_a_trace_of_zeros():
    subject, direction = case("bert")
    found = trace_direction(subject, {name: torch.zeros_like(v) for name, v in direction.items()}, 0)
    assert not found.derivative.any()
    assert not found.table[found.classes].to_numpy().any()
