"""Which parameters take part, and what they are called."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import twins
from torch import nn

import npeff_nb as nb
from npeff_nb.directions.lift import direction
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.parameters import choose_parameters, describe_parameters


@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2])
def test_default_leaves_out_head_embeddings_norms_and_biases(make):
    model = make()
    chosen = choose_parameters(model)
    assert set(chosen["kind"]).isdisjoint({"head", "embedding", "norm", "bias"})
    left_out = set(describe_parameters(model)["name"]) - set(chosen["name"])
    assert all(
        "bias" in n or "embedding" in n or "Norm" in n or "ln_" in n or "wte" in n or "wpe" in n or n.split(".")[0] in {"classifier", "score"}
        for n in left_out
    )
    assert all(len(shape) == 2 for shape in chosen["shape"])


def test_bert_s_matrices_are_named_for_what_they_do():
    kinds = describe_parameters(tiny.bert()).set_index("name")["kind"]
    layer = "bert.encoder.layer.1."
    assert kinds[layer + "attention.self.query.weight"] == "attention query"
    assert kinds[layer + "attention.self.key.weight"] == "attention key"
    assert kinds[layer + "attention.self.value.weight"] == "attention value"
    assert kinds[layer + "attention.output.dense.weight"] == "attention output"
    assert kinds[layer + "intermediate.dense.weight"] == "MLP in"
    assert kinds[layer + "output.dense.weight"] == "MLP out"
    assert kinds["bert.pooler.dense.weight"] == "pooler"
    assert kinds["classifier.weight"] == kinds["classifier.bias"] == "head"
    assert kinds["bert.embeddings.word_embeddings.weight"] == "embedding"
    assert kinds["bert.embeddings.LayerNorm.weight"] == kinds["bert.embeddings.LayerNorm.bias"] == "norm"
    assert kinds[layer + "output.dense.bias"] == "bias"


def test_gpt2_s_matrices_are_named_for_what_they_do():
    kinds = describe_parameters(tiny.gpt2()).set_index("name")["kind"]
    assert kinds["transformer.h.0.attn.c_attn.weight"] == "attention query key value"
    assert kinds["transformer.h.0.attn.c_proj.weight"] == "attention output"
    assert kinds["transformer.h.1.mlp.c_fc.weight"] == "MLP in"
    assert kinds["transformer.h.1.mlp.c_proj.weight"] == "MLP out"
    assert kinds["score.weight"] == "head"


PARTS = {
    "DistilBERT": (
        tiny.distilbert,
        "distilbert.transformer.layer.1.",
        ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"),
        ("pre_classifier.weight", "classifier.bias"),
    ),
    "RoBERTa": (
        tiny.roberta,
        "roberta.encoder.layer.1.",
        ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense", "intermediate.dense", "output.dense"),
        ("classifier.dense.weight", "classifier.out_proj.weight"),
    ),
    "Llama": (
        lambda: tiny.llama_for("CausalLM"),
        "model.layers.1.",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"),
        ("lm_head.weight",),
    ),
    "T5": (
        tiny.t5,
        "decoder.block.1.layer.",
        ("1.EncDecAttention.q", "0.SelfAttention.k", "1.EncDecAttention.v", "0.SelfAttention.o", "2.DenseReluDense.wi", "2.DenseReluDense.wo"),
        (),  # its words are its answers' words
    ),
}


@pytest.mark.parametrize(("make", "layer", "modules", "heads"), PARTS.values(), ids=PARTS.keys())
def test_the_parts_of_other_families_are_known_too(make, layer, modules, heads):
    table = describe_parameters(make()).set_index("name")
    kinds = ("attention query", "attention key", "attention value", "attention output", "MLP in", "MLP out")
    for module, kind in zip(modules, kinds, strict=True):
        assert table["kind"][f"{layer}{module}.weight"] == kind
        assert table["layer"][f"{layer}{module}.weight"] == 1
    assert all(table["kind"][name] == "head" for name in heads)
    assert set(table["kind"]) & {"embedding", "norm"} == {"embedding", "norm"}
    assert choose_parameters(make())["kind"].isin(kinds).all()


def test_an_image_s_patches_and_first_token_are_embeddings():
    kinds = describe_parameters(tiny.vit()).set_index("name")["kind"]
    assert {kind for name, kind in kinds.items() if "embeddings" in name and not name.endswith("bias")} == {"embedding"}


def test_layers_are_numbered_and_what_has_none_says_so():
    layers = describe_parameters(tiny.bert()).set_index("name")["layer"]
    assert layers["bert.encoder.layer.1.output.dense.weight"] == 1
    assert layers["bert.pooler.dense.weight"] is pd.NA
    assert str(layers.dtype) == "Int64"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("all", 41),  # 5 of the embeddings, 2 × 16 of the layers, 2 of the pooler, 2 of the classifier
        ("*layer.1*", 16),
        ("MLP in", 2),
        ("classifier.weight", 1),
        (["classifier.weight", "bert.pooler.dense.weight"], 2),
    ],
)
def test_patterns_kinds_and_names(asked, expected):
    assert len(choose_parameters(tiny.bert(), asked)) == expected


MATCHING = {
    "layers 0-1": lambda name, kind: "layer." in name,
    "layers 1-9": lambda name, kind: "layer.1." in name,
    "layers 0 to 0": lambda name, kind: "layer.0." in name,
    "layer 1": lambda name, kind: "layer.1." in name,
    "Layers 1": lambda name, kind: "layer.1." in name,
    "attention": lambda name, kind: kind.startswith("attention "),
    "MLP": lambda name, kind: kind in {"MLP in", "MLP out"},
    "attention query": lambda name, kind: kind == "attention query",
    "attention & layer 0": lambda name, kind: kind.startswith("attention ") and "layer.0." in name,
    "attention&layer 0 & !*key*": lambda name, kind: kind.startswith("attention ") and "layer.0." in name and "key" not in name,
    "!head": lambda name, kind: kind != "head",
    "! *bias & ! norm & !layers 0-1": lambda name, kind: not name.endswith("bias") and kind != "norm" and "layer." not in name,
    "all & !embedding": lambda name, kind: kind != "embedding",
    "layer 0 & !layer 0 & bias": None,
    "layers 3-2": None,
    "layer 7": None,
    "attention & MLP": None,
    "!all": None,
    "attent": None,
}


@pytest.mark.parametrize(("said", "holds"), MATCHING.items(), ids=MATCHING.keys())
def test_ranges_kinds_and_their_combinations(said, holds):
    model = tiny.bert()
    if holds is None:
        with pytest.raises(
            ValueError, match=r"matches none of the model's 41 parameters; a pattern matches names such as .*kinds here are MLP in, MLP out"
        ):
            choose_parameters(model, said)
        return
    expected = [name for name, kind in describe_parameters(model)[["name", "kind"]].itertuples(index=False) if holds(name, kind)]
    assert expected
    assert choose_parameters(model, said)["name"].tolist() == expected


def test_of_a_list_one_must_hold():
    model = tiny.bert()
    found = choose_parameters(model, ["MLP & layer 1", "classifier.bias", "attention key & !layer 1"])["name"].tolist()
    layer = "bert.encoder.layer."
    assert found == [
        f"{layer}0.attention.self.key.weight", f"{layer}1.intermediate.dense.weight", f"{layer}1.output.dense.weight", "classifier.bias"
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"parameters= names 'layer 7', which the model does not have; its 41 names are like bert\.embeddings"):
        choose_parameters(model, ["MLP", "layer 7"])


def test_a_list_keeps_the_model_s_order():
    names = ["classifier.weight", "bert.pooler.dense.weight"]
    assert choose_parameters(tiny.bert(), names)["name"].tolist() == names[::-1]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("*nothing*", r"parameters='\*nothing\*' matches none of the model's 41 parameters.*the kinds here are MLP in"),
        (["classifier.weight", "missing"], "names 'missing', which the model does not have"),
        ([], "empty list"),
    ],
)
def test_a_choice_that_finds_nothing_says_what_is_there(asked, words):
    with pytest.raises(ValueError, match=words):
        choose_parameters(tiny.bert(), asked)


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ValueError, match=r"the model \(ReLU\) has no parameters"):
        choose_parameters(nn.ReLU())


def test_tied_parameters_come_once():
    for make, shared in ((tiny.TwoLinearsOneWeight, "first.weight"), (tiny.EmbeddingIsAlsoLinear, "table.weight")):
        names = describe_parameters(make())["name"].tolist()
        assert names.count(shared) == 1
        assert len(names) == len(set(names)) == len(list(make().named_parameters()))


def test_a_plain_module_s_last_layer_is_its_head():
    kinds = describe_parameters(tiny.ConvNet()).set_index("name")["kind"]
    assert kinds["out.weight"] == kinds["out.bias"] == "head"
    assert choose_parameters(tiny.ConvNet())["name"].tolist() == ["first.weight", "second.weight"]


def test_a_model_that_is_all_head_is_decomposed_over_it():
    assert choose_parameters(nn.Sequential(nn.Linear(4, 3)))["name"].tolist() == ["0.weight", "0.bias"]


# ------------------------------------------------------------------------------------------------------------------------ scale

SCALE = {"embedding": 3.0, "MLP": 0.25, "layer 1": 2, "*bias": 0.5}
"""Several may hold for one parameter, and then multiply: the bias of layer 1 is at 1."""


def scale_of(name: str) -> float:
    found = 3.0 if "embeddings." in name and "LayerNorm" not in name else 1.0
    found *= 0.25 if name.endswith("dense.weight") and ("intermediate" in name or ("output" in name and "attention" not in name)) else 1.0
    found *= 2.0 if "layer.1." in name else 1.0
    return found * (0.5 if name.endswith("bias") else 1.0)


def per_entry(parameters: pd.DataFrame) -> np.ndarray:
    """The factor on every single number, (p,)."""
    return np.repeat([scale_of(name) for name in parameters["name"]], parameters["numel"].astype(int))


def rows_of(model: nn.Module, texts: list[str], names: list[str]) -> list[np.ndarray]:
    """Unscaled factor rows as they are kept (one class against all less likely ones), by autograd in float64, (c − 1, p) each."""
    model = twins.double(model)
    chosen = [dict(model.named_parameters())[name] for name in names]
    found = []
    for text in texts:
        z = model(**tiny.tokenizer()([text], return_tensors="pt")).logits[0]
        jacobian = torch.stack([twins.flat_gradients(value, chosen) for value in z]).numpy()
        found.append(twins.stick_breaking(z.detach().numpy()) @ jacobian)
    return found


def test_scales_multiply_and_stand_in_the_table():
    chosen = choose_parameters(tiny.bert(), "all", SCALE)
    assert chosen["scale"].tolist() == [scale_of(name) for name in chosen["name"]]
    assert chosen.loc[chosen["name"] == "bert.encoder.layer.1.output.dense.bias", "scale"].item() == 1.0
    assert (choose_parameters(tiny.bert())["scale"] == 1.0).all()


@pytest.mark.parametrize("factor", [0, -1.0, float("inf"), float("nan"), "2", None])
def test_a_scale_is_a_positive_number(factor):
    with pytest.raises(
        ValueError, match=r"scale=\{'MLP': .*\}: a scale is a positive number; leave parameters out with parameters= instead of scaling by 0"
    ):
        choose_parameters(tiny.bert(), "all", {"MLP": factor})


def test_a_scale_speaks_of_parameters_that_take_part():
    with pytest.raises(ValueError, match=r"scale= names 'embedding', which none of the 13 parameters that take part is"):
        choose_parameters(tiny.bert(), "default", {"embedding": 2.0})


def test_numpy_s_numbers_are_numbers():
    assert set(choose_parameters(tiny.bert(), "MLP", {"MLP in": np.float32(2), "MLP out": np.int64(3)})["scale"]) == {2.0, 3.0}


@pytest.fixture(scope="module")
def scaled():
    return extract_fishers(
        tiny.bert(), tiny.tokenizer(), tiny.TEXTS, parameters="all", scale=SCALE, features="dense", diagonal=True, batch_size=3, progress=False
    )


def test_a_scaled_fisher_is_that_of_scaled_gradients(scaled):
    names = list(scaled.parameters["name"])
    factor = per_entry(scaled.parameters)
    rows = [row * factor for row in rows_of(tiny.bert(), tiny.TEXTS, names)]
    for i, expected in enumerate(rows):
        assert np.linalg.norm(scaled.factors[i] - expected) < 1e-5 * np.linalg.norm(expected)  # float32
        assert scaled.norms[i] == pytest.approx(twins.frobenius(expected), rel=1e-5)
        assert scaled.traces[i] == pytest.approx((expected**2).sum(), rel=1e-5)
    np.testing.assert_allclose(scaled.diagonal, np.mean([(row**2).sum(0) for row in rows], 0), rtol=1e-3, atol=1e-8)


@pytest.mark.filterwarnings("ignore:no formula for:UserWarning")
@pytest.mark.parametrize(
    ("make", "shape", "scale"),
    [(tiny.HandMade, (4, 3, 5), {"own.*": 3.0, "query": 0.5}), (tiny.TwoLinearsOneWeight, (4, 6), {"first.weight": 0.25})],
    ids=["run again", "tied"],
)
def test_scales_of_layers_that_are_run_again_and_of_tied_ones(make, shape, scale):
    model, inputs = tiny.seeded(make), torch.randn(shape)
    pefs = extract_fishers(model, logits=tiny.plain_logits, inputs=inputs, parameters="all", scale=scale, features="dense", progress=False)
    factor = np.repeat(pefs.parameters["scale"], pefs.parameters["numel"].astype(int)).to_numpy()
    assert set(factor) == {*scale.values(), 1.0}
    doubled = twins.double(model)
    for i in range(4):
        rows = twins.rows_of_logits(doubled, doubled(inputs[i : i + 1].double())[0], list(pefs.parameters["name"])) * factor
        assert twins.relative_distance(pefs.factors[i], rows) < 1e-5


def test_a_sketch_of_scaled_gradients_keeps_their_norms(scaled):
    sketched = extract_fishers(tiny.bert(), tiny.tokenizer(), tiny.TEXTS, parameters="all", scale=SCALE, features="sketch", progress=False)
    np.testing.assert_allclose(sketched.norms, scaled.norms, rtol=1e-5)


def test_a_direction_of_scaled_fishers_is_a_step_in_the_weights_themselves(scaled):
    """Over φ = θ/s a component is h = Σ Θ D a; a step along h there is a step along D h = D² Σ Θ a here."""
    npeff = nb.NPEFF(2, n_init=1, tol=1e-10, max_iter=2000, random_state=0).fit(scaled)
    names, factor = list(scaled.parameters["name"]), per_entry(scaled.parameters)
    rows = np.stack(rows_of(tiny.bert(), tiny.TEXTS, names))
    for k in range(2):
        theta = npeff.row_weights(k) / np.sqrt(scaled.norms)[:, None]
        expected = factor**2 * np.einsum("ny,nyp->p", theta, rows)
        expected /= np.linalg.norm(expected)
        found = direction(npeff, k, coverage=1)
        vector = np.concatenate([found[name].double().numpy().ravel() for name in names])
        assert np.linalg.norm(vector - expected) < 1e-4  # float32 gradients, summed over examples
        stepped = factor * npeff.components_[k]
        assert vector @ stepped / np.linalg.norm(stepped) > 1 - 1e-4  # the fit's own stationarity comes on top


def test_scales_come_back_and_go_on(scaled, tmp_path):
    back = nb.load(scaled.save(tmp_path / "x.pefs"))
    assert back.parameters["scale"].tolist() == scaled.parameters["scale"].tolist()
    again = extract_fishers(tiny.bert(), tiny.tokenizer(), tiny.TEXTS[:2], like=back, progress=False)
    np.testing.assert_allclose(again.factors, scaled.factors[:2], atol=1e-5 * np.abs(scaled.factors).max())


# ------------------------------------------------------------------------------------------------------------------------ energy


def shares_by_hand(texts: list[str]) -> dict[tuple, float]:
    """Mean share of an example's trace by (layer, kind), over all parameters."""
    table = describe_parameters(tiny.bert())
    ends = np.cumsum([0, *table["numel"]])
    found: dict[tuple, float] = {}
    for rows in rows_of(tiny.bert(), texts, list(table["name"])):
        for (start, stop), layer, kind in zip(pairwise(ends), table["layer"], table["kind"], strict=True):
            key = (None if pd.isna(layer) else int(layer), kind)
            found[key] = found.get(key, 0.0) + (rows[:, start:stop] ** 2).sum() / (rows**2).sum() / len(texts)
    return found


def assert_shares(table: pd.DataFrame, expected: dict[tuple, float]) -> None:
    assert table.columns.tolist() == ["layer", "kind", "share", "numel"]
    assert table["share"].is_monotonic_decreasing
    assert table["share"].sum() == pytest.approx(1)
    found = {(None if pd.isna(layer) else int(layer), kind): share for layer, kind, share, _ in table.itertuples(index=False)}
    assert found.keys() == expected.keys()
    for key, share in expected.items():
        assert found[key] == pytest.approx(share, rel=1e-4, abs=1e-7), key  # float32


def test_energy_by_layer_and_kind_before_anything_is_chosen():
    model = tiny.bert()
    found = nb.parameter_energy(model, tiny.tokenizer(), tiny.TEXTS)
    assert_shares(found, shares_by_hand(tiny.TEXTS))
    assert found["numel"].sum() == sum(p.numel() for p in model.parameters())


def test_energy_of_what_was_extracted():
    pefs = extract_fishers(tiny.bert(), tiny.tokenizer(), tiny.TEXTS, parameters="all", features="dense", progress=False)
    assert_shares(pefs.parameter_energy(), shares_by_hand(tiny.TEXTS))
    some = extract_fishers(tiny.bert(), tiny.tokenizer(), tiny.TEXTS, parameters="MLP", features="dense", progress=False).parameter_energy()
    assert set(some["kind"]) == {"MLP in", "MLP out"}
    assert some["share"].sum() == pytest.approx(1)


def test_energy_is_looked_up_on_some_examples_only(monkeypatch):
    seen = []
    model = tiny.bert()
    model.register_forward_hook(lambda module, args, named, out: seen.extend(named["input_ids"].tolist()), with_kwargs=True)
    first = nb.parameter_energy(model, tiny.tokenizer(), tiny.table(24), sample=5)
    drawn = {tuple(i for i in ids if i) for ids in seen}
    assert len(drawn) == 5
    assert drawn <= {tuple(ids) for ids in tiny.tokenizer()(tiny.table(24)["text"].tolist())["input_ids"]}
    pd.testing.assert_frame_equal(first, nb.parameter_energy(model, tiny.tokenizer(), tiny.table(24), sample=5))


def test_energy_of_ready_inputs():
    model, inputs = tiny.seeded(tiny.ConvNet), torch.randn(7, 2, 9, 11)
    whole = nb.parameter_energy(model, inputs=inputs, logits=tiny.plain_logits)
    pefs = extract_fishers(model, logits=tiny.plain_logits, inputs=inputs, parameters="all", features="dense", progress=False)
    np.testing.assert_allclose(whole["share"], pefs.parameter_energy()["share"], rtol=1e-4)
    assert len(nb.parameter_energy(model, inputs={"x": inputs}, logits=lambda m, b: m(b["x"]), sample=3)) == len(whole)
