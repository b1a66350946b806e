"""Which parameters take part, and what they are called."""

from __future__ import annotations

import pandas as pd
import pytest
import tiny
from torch import nn

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
