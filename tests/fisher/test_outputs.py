"""What a model is asked: which question fits which model, how texts become examples, and in which words the rest is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import transformers
from torch import nn

import npeff_nb as nb
from npeff_nb.fisher import outputs
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.outputs import ImageClasses, LabelWords, MaskedToken, MultiLabel, NextToken, SequenceClasses, TokenClasses, output_for

TEXTS = tiny.TEXTS[:6]


def asked(model, tokenizer, examples, parameters="all", **settings):
    return extract_fishers(model, tokenizer, examples, features="dense", parameters=parameters, progress=False, **settings)


@pytest.fixture
def language_model():
    return tiny.gpt2_for("LMHeadModel")


@pytest.fixture
def words():
    """A tokenizer without token types, for models that have none."""
    return tiny.tokenizer(types=False)


# ------------------------------------------------------------------------------------------------------------------------ which question


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: tiny.bert_for("SequenceClassification"), SequenceClasses),
        (lambda: tiny.bert_for("SequenceClassification", problem_type="multi_label_classification"), MultiLabel),
        (lambda: tiny.bert_for("SequenceClassification", problem_type="single_label_classification"), SequenceClasses),
        (lambda: tiny.bert_for("TokenClassification"), TokenClasses),
        (lambda: tiny.bert_for("MaskedLM"), MaskedToken),
        (lambda: tiny.gpt2_for("LMHeadModel"), NextToken),
        (lambda: tiny.llama_for("CausalLM"), NextToken),
        (lambda: tiny.llama_for("SequenceClassification"), SequenceClasses),
        (tiny.t5, NextToken),
        (tiny.vit, ImageClasses),
        (lambda: nn.Linear(2, 2), SequenceClasses),
    ],
)
def test_a_model_is_asked_what_it_was_made_for(make, kind):
    found = output_for(make())
    assert type(found) is kind
    assert found.family == ("bernoulli" if kind is MultiLabel else "categorical")
    assert found.facts()["kind"] == kind.__name__


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tiny.bert_for("SequenceClassification", num_labels=1), r"BertForSequenceClassification is a regression head \(1 number, no class\)"),
        (lambda: tiny.bert_for("SequenceClassification", problem_type="regression"), r"is a regression head \(3 number"),
        (lambda: tiny.gpt2_for("ForSequenceClassification", num_labels=1), r"GPT2ForSequenceClassification is a regression head"),
    ],
)
def test_a_regression_head_is_refused_with_the_way_out(make, words, tokenizer):
    with pytest.raises(ValueError, match=words + r".*over at least 2 classes\. Give logits=, a function \(model, batch\) -> \(n, classes\)"):
        extract_fishers(make(), tokenizer, TEXTS)


def test_the_way_out_of_a_regression_head_works(tokenizer):
    """Its number as the log-odds of one class."""

    def two_classes(model, batch):
        z = model(**batch).logits
        return torch.cat([z, torch.zeros_like(z)], 1)

    pefs = asked(tiny.bert_for("SequenceClassification", num_labels=1), tokenizer, TEXTS, logits=two_classes)
    assert pefs.factors.shape[:2] == (6, 1)


def test_output_and_logits_exclude_each_other(bert, tokenizer):
    with pytest.raises(TypeError, match="output= and logits= both say how predictions are read off the model: give one of them"):
        extract_fishers(bert, tokenizer, TEXTS, output=SequenceClasses(), logits=tiny.plain_logits)


@pytest.mark.parametrize(
    ("make", "output", "words"),
    [
        (
            lambda: tiny.bert_for("TokenClassification"),
            SequenceClasses(),
            r"BertForTokenClassification gives logits of shape \(\d+, \d+, 3\); expected",
        ),
        (lambda: tiny.gpt2_for("LMHeadModel"), SequenceClasses(), r"GPT2LMHeadModel gives logits of shape .*; expected \(examples, classes\)"),
    ],
)
def test_a_question_that_the_model_does_not_answer(make, output, words):
    with pytest.raises(ValueError, match=words + ".*For another model pass output= or logits="):
        extract_fishers(make(), tiny.tokenizer(types=False), TEXTS, output=output, progress=False)


def test_positions_are_last_or_every():
    with pytest.raises(ValueError, match="positions='first': choose 'last' or 'every'"):
        NextToken("first")


def test_an_encoder_decoder_has_no_positions_to_read():
    with pytest.raises(
        ValueError, match="positions='every' reads a causal language model; an encoder-decoder answers a whole text: leave it at 'last'"
    ):
        extract_fishers(tiny.t5(vocab_size=45), tiny.t5_tokenizer(), TEXTS, output=NextToken("every"))


def test_an_encoder_decoder_that_does_not_say_how_an_answer_begins():
    model = tiny.t5(vocab_size=45)
    model.config.decoder_start_token_id = model.config.pad_token_id = None
    with pytest.raises(ValueError, match=r"does not say with which token an answer begins: set model\.config\.decoder_start_token_id"):
        extract_fishers(model, tiny.t5_tokenizer(), TEXTS)


def test_everything_is_public_under_one_name():
    assert nb.outputs is outputs
    assert set(outputs.__all__) >= {
        "SequenceClasses",
        "MultiLabel",
        "TokenClasses",
        "NextToken",
        "MaskedToken",
        "LabelWords",
        "ImageClasses",
        "Sampled",
    }


# ------------------------------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    "said",
    [["king"], ["king", "king"], [], ["king", " "], ["king", 3], {"a": "king", "b": "king"}],
    ids=["one", "equal", "none", "blank", "number", "dict"],
)
def test_words_are_two_different_ones_at_least(said):
    with pytest.raises(ValueError, match="give at least two different words, one for each class"):
        LabelWords(said)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{question} ?", r"template='\{question\} \?' cannot be filled \('question'\); it may use \{text\}, \{label\}, \{mask\} and doubled braces"),
        ("{} ?", r"cannot be filled \(.*\); it may use \{text\}"),
        ("{0}", r"cannot be filled"),
        ("{text", r"template='\{text' cannot be filled \(expected '\}' before end of string\)"),
    ],
)
def test_a_template_that_cannot_be_filled(template, words, language_model):
    with pytest.raises(ValueError, match=words):
        extract_fishers(language_model, tiny.tokenizer(), pd.DataFrame({"text": TEXTS, "label": 1}), output=LabelWords(["king", "city"], template))


def test_templates_are_filled_from_all_columns(language_model, words):
    table = pd.DataFrame({"text": TEXTS[:2], "kind": ["who", "how many"]})
    pefs = asked(language_model, words, table, output=LabelWords(["king", "city"], "{kind} {{x}} : {text} is "))
    # The column shows the prompt; what stands behind it is left to the words.
    assert pefs.examples["prompt"].tolist() == [f"{kind} {{x}} : {text} is " for kind, text in zip(table["kind"], table["text"], strict=True)]
    assert pefs.subject.batches.texts == [prompt.rstrip() for prompt in pefs.examples["prompt"]]


def test_the_plain_template_adds_no_column(language_model, words):
    assert asked(language_model, words, TEXTS, output=LabelWords(["king", "city"])).examples.columns.tolist() == ["text"]


def test_classes_are_called_as_their_words_or_as_said(language_model, words):
    by_list = asked(language_model, words, TEXTS, output=LabelWords(["king", " city"]))
    by_name = asked(language_model, words, TEXTS, output=LabelWords({"person": "king", "place": "city"}))
    assert by_list.classes == ["king", " city"]
    assert by_name.classes == ["person", "place"]
    np.testing.assert_array_equal(by_list.factors, by_name.factors)


def test_gold_labels_may_be_said_by_the_words_names(language_model, words):
    table = pd.DataFrame({"text": TEXTS, "label": ["place", "person"] * 3})
    pefs = asked(language_model, words, table, output=LabelWords({"person": "king", "place": "city"}), fisher="empirical")
    assert pefs.choices["labels"][:, 0].tolist() == [1, 0] * 3
    assert pefs.to_frame()["correct"].dtype == bool


def test_spaces_around_prompts_and_words_make_no_difference(language_model, words):
    plain = asked(language_model, words, TEXTS, output=LabelWords(["king", "city"], "{text} is"))
    spaced = asked(language_model, words, TEXTS, output=LabelWords([" king", "city "], "{text} is \n"))
    np.testing.assert_array_equal(plain.factors, spaced.factors)


def test_two_words_that_begin_alike_and_have_no_more(language_model, words):
    with pytest.raises(ValueError, match=r"two of the words \['unheard', 'unseen'\] .*same tokens?.*: choose words that differ"):
        asked(language_model, words, TEXTS, output=LabelWords(["unheard", "unseen"]))


def test_two_long_words_that_are_the_same_tokens(language_model, words):
    """Their probabilities are equal whatever the model says: what little is left of a Fisher is rounding."""
    with pytest.raises(ValueError, match=r"same tokens?.*choose words that differ"):
        asked(language_model, words, TEXTS, output=LabelWords(["unheard of", "unseen of"]))


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (["king", "years"], r"'years' is 2 tokens \(\['year', '##s'\]\), and a mask stands for one: choose another word"),
        (["the king", "city"], r"'the king' is 2 tokens \(\['the', 'king'\]\)"),
    ],
)
def test_under_a_mask_stands_one_token(said, found):
    tokenizer = tiny.tokenizer(mask=True)
    with pytest.raises(ValueError, match=found):
        extract_fishers(tiny.bert_for("MaskedLM", vocab_size=28), tokenizer, TEXTS, output=LabelWords(said, "{text} {mask}"))


def test_two_words_that_are_one_token_under_a_mask():
    tokenizer = tiny.tokenizer(mask=True)
    with pytest.raises(ValueError, match=r"same tokens?.*choose words that differ"):
        extract_fishers(tiny.bert_for("MaskedLM", vocab_size=28), tokenizer, TEXTS, output=LabelWords(["unheard", "unseen"], "{text} {mask}"))


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["what is [MASK]", "who is it"], r"row 1 has 0 masks \(\[MASK\]\) among the tokens that the model takes: write exactly one in each text"),
        (["[MASK] is [MASK]"], r"row 0 has 2 masks"),
    ],
)
@pytest.mark.parametrize("output", [None, LabelWords(["king", "city"])])
def test_every_text_has_one_mask(texts, found, output):
    with pytest.raises(ValueError, match=found + ".*|or {mask} in a template"):
        extract_fishers(tiny.bert_for("MaskedLM", vocab_size=28), tiny.tokenizer(mask=True), texts, output=output)


def test_a_mask_behind_the_cut_is_none():
    tokenizer = tiny.tokenizer(mask=True, model_max_length=6)
    with pytest.raises(ValueError, match="row 0 has 0 masks"), pytest.warns(UserWarning, match="1 of 1 texts are longer than the 6 tokens"):
        extract_fishers(tiny.bert_for("MaskedLM", vocab_size=28), tokenizer, ["how many years is a king [MASK]"])


def test_a_tokenizer_without_a_mask():
    with pytest.raises(ValueError, match="has no mask token, under which a masked language model predicts"):
        extract_fishers(tiny.bert_for("MaskedLM"), tiny.tokenizer(), TEXTS)


# ------------------------------------------------------------------------------------------------------------------------ cuts


LONG_PROMPT = "who is the king of the city ? " * 6 + "when"


@pytest.mark.parametrize(
    ("output", "kept"),
    [(NextToken(), 40), (LabelWords(["king", "city"]), 40), (LabelWords(["king", "what city ?"]), 38)],
    ids=["next token", "words", "words of three tokens"],
)
def test_a_long_prompt_is_cut_at_its_beginning(output, kept, language_model, words):
    """The end is what the next token hangs on; words of several tokens need room behind it."""
    with pytest.warns(
        UserWarning, match=rf"1 of 2 texts are longer than the {kept} tokens that the model takes.*what stands before the cut takes no part"
    ):
        pefs = asked(language_model, words, [LONG_PROMPT, "what"], output=output, classes="all")
    assert pefs.facts["texts_cut"] == 1
    ids = words(LONG_PROMPT)["input_ids"]
    assert pefs.subject.batches.encoded["input_ids"][0] == ids[-kept:-1]  # [SEP] was among the tokens that were counted, and goes
    with torch.no_grad():
        z = language_model(input_ids=torch.tensor([ids[-kept:-1]])).logits[0, -1]
    if isinstance(output, NextToken):
        np.testing.assert_allclose(pefs.logits[0], z.numpy(), atol=1e-5)  # float32
    elif kept == 40:
        np.testing.assert_allclose(pefs.logits[0], z[words.convert_tokens_to_ids(["king", "city"])].numpy(), atol=1e-5)


def test_every_position_of_a_cut_text(language_model, words):
    with pytest.warns(UserWarning, match="1 of 1 texts are longer than the 40 tokens"):
        pefs = asked(language_model, words, [LONG_PROMPT], output=NextToken("every"), classes=2)
    assert len(pefs) == 39
    assert pefs.examples["token"].tolist() == words.convert_ids_to_tokens(words(LONG_PROMPT)["input_ids"][-40:-1])


def test_a_classifier_s_text_and_an_encoder_s_are_cut_at_their_end(tokenizer):
    with pytest.warns(UserWarning, match="longer than the 40 tokens.*what stands after the cut takes no part"):
        pefs = asked(tiny.bert_for("SequenceClassification"), tokenizer, [LONG_PROMPT, "what"])
    assert pefs.subject.batches.encoded["input_ids"][0] == [*tokenizer(LONG_PROMPT)["input_ids"][:39], tokenizer.sep_token_id]


def test_t5_has_no_longest_text():
    """Its positions are relative: the number in its configuration is only what it was trained with."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pefs = asked(
            tiny.t5(vocab_size=45, n_positions=8), tiny.t5_tokenizer(), [LONG_PROMPT, "what"], parameters="*block.0*SelfAttention.q*", classes=2
        )
    assert pefs.subject.batches.lengths.max() > 40


def test_roberta_s_table_begins_behind_its_padding_index():
    model = transformers.RobertaForSequenceClassification(
        transformers.RobertaConfig(
            vocab_size=27,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            max_position_embeddings=20,
            pad_token_id=1,
            num_labels=2,
        )
    ).eval()
    with pytest.warns(UserWarning, match="longer than the 18 tokens"):
        asked(model, tiny.tokenizer(types=False), [LONG_PROMPT, "what"])


# ------------------------------------------------------------------------------------------------------------------------ tables


def test_token_classes_make_every_word_an_example():
    """The table repeats the text; labels, one a word, are spread; a word of several pieces is one."""
    texts = ["who played , the runner", "king"]
    labels = [["O", "V", "O", "O", "N"], ["N"]]
    table = pd.DataFrame({"text": texts, "label": labels, "source": ["a", "b"]})
    model = tiny.bert_for("TokenClassification", num_labels=3)
    model.config.id2label = {0: "O", 1: "V", 2: "N"}
    pefs = asked(model, tiny.tokenizer(), table)
    assert pefs.classes == ["O", "V", "N"]
    found = pefs.examples
    assert found["text_row"].tolist() == [0] * 5 + [1]
    assert found["text"].tolist() == [texts[0]] * 5 + [texts[1]]
    assert found["source"].tolist() == ["a"] * 5 + ["b"]
    assert found["word"].tolist() == ["who", "played", ",", "the", "runner", "king"]
    assert found["position"].tolist() == [0, 1, 2, 3, 4, 0]
    assert found["label"].tolist() == ["O", "V", "O", "O", "N", "N"]
    assert pefs.to_frame()["correct"].tolist() == (pefs.predictions == found["label"].to_numpy()).tolist()
    gold = asked(model, tiny.tokenizer(), table, fisher="empirical")
    assert gold.choices["labels"][:, 0].tolist() == [0, 1, 0, 0, 2, 2]


def test_token_classes_without_labels_or_with_one_a_text():
    table = pd.DataFrame({"text": ["who played", "king"], "label": ["question", "noun"]})
    found = asked(tiny.bert_for("TokenClassification"), tiny.tokenizer(), table).examples
    assert found["label"].tolist() == ["question", "question", "noun"]
    assert "label" not in asked(tiny.bert_for("TokenClassification"), tiny.tokenizer(), ["who played"]).examples


def test_token_classes_of_some_texts_only_with_labels():
    """A text whose labels do not fit its words keeps what it had, and the others are spread."""
    table = pd.DataFrame({"text": ["who played", "king is"], "label": [["Q", "V"], ["N"]]})
    found = asked(tiny.bert_for("TokenClassification"), tiny.tokenizer(), table).examples
    assert found["label"].tolist()[:2] == ["Q", "V"]
    assert found["label"].tolist()[2:] == [["N"], ["N"]]


def test_token_classes_are_cut_with_their_text():
    with pytest.warns(UserWarning, match="1 of 1 texts are longer than the 5 tokens"):
        pefs = asked(tiny.bert_for("TokenClassification"), tiny.tokenizer(model_max_length=5), ["who played in the year"])
    assert pefs.examples["word"].tolist() == ["who", "played"]  # [CLS] who play ##ed [SEP]


def test_token_classes_need_a_tokenizer_that_knows_words():
    class Slow:
        model_max_length = 10**30

        def __call__(self, texts, **settings):
            return {"input_ids": [[2, 5, 3] for _ in texts]} if isinstance(texts, list) else {"input_ids": [2, 5, 3]}

    with pytest.raises(TypeError, match="Slow does not tell where words begin: token classification needs a fast tokenizer"):
        extract_fishers(tiny.bert_for("TokenClassification"), Slow(), ["who"])


def test_every_position_tells_what_was_read_and_what_follows(language_model, words):
    pefs = asked(language_model, words, pd.DataFrame({"text": ["what is", "king"], "id": [7, 9]}), output=NextToken("every"), classes=3)
    found = pefs.examples
    assert found["text_row"].tolist() == [0, 0, 0, 1, 1]
    assert found["id"].tolist() == [7, 7, 7, 9, 9]
    assert found["position"].tolist() == [0, 1, 2, 0, 1]
    assert found["token"].tolist() == ["[CLS]", "what", "is", "[CLS]", "king"]
    assert [None if pd.isna(x) else x for x in found["next_token"]] == ["what", "is", None, "king", None]


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (lambda: (tiny.gpt2_for("LMHeadModel"), tiny.tokenizer(types=False)), {"output": NextToken("every"), "classes": 3}),
        (lambda: (tiny.bert_for("TokenClassification"), tiny.tokenizer()), {}),
        (lambda: (tiny.gpt2_for("LMHeadModel"), tiny.tokenizer(types=False)), {"output": LabelWords({"a": "king", "b": "what city"}, "{text} is")}),
        (lambda: (tiny.bert_for("MaskedLM", vocab_size=28), tiny.tokenizer(mask=True)), {"output": LabelWords(["king", "city"], "{text} {mask}")}),
        (lambda: (tiny.t5(vocab_size=45), tiny.t5_tokenizer()), {"output": LabelWords(["king", "what city"])}),
        (lambda: (tiny.bert_for("SequenceClassification", problem_type="multi_label_classification"), tiny.tokenizer()), {}),
    ],
    ids=["every position", "token classes", "long words", "words under a mask", "T5", "multi-label"],
)
@pytest.mark.filterwarnings("ignore:.*slower and as exact:UserWarning")
def test_a_loaded_result_asks_the_same_again(make, settings, tmp_path):
    """What was saved is enough to ask the model anew: spread tables are not spread twice."""
    model, tokenizer = make()
    pefs = asked(model, tokenizer, pd.DataFrame({"text": TEXTS[:4], "name": list("abcd")}), **settings)
    back = nb.load(pefs.save(tmp_path / "x.pefs")).attach(model, tokenizer)
    np.testing.assert_allclose(back.subject.logits(np.arange(len(back))).numpy(), pefs.logits, atol=2e-5)  # float32, other batches
    assert back.subject.output.facts() == pefs.subject.output.facts()
    # The rows of the extraction, signs and order of classes included.
    npeff = nb.NPEFF(1, n_init=1, random_state=0).fit(back)
    assert np.isfinite(next(iter(npeff.direction(0).values())).numpy()).all()


def test_an_own_function_has_to_be_given_again(bert, tokenizer, tmp_path):
    def first_two(model, batch):
        return model(**batch).logits[:, :2]

    pefs = asked(bert, tokenizer, TEXTS, logits=first_two)
    back = nb.load(pefs.save(tmp_path / "x.pefs"))
    with pytest.raises(TypeError, match=r"the logits were read by a function \(.*first_two\), which is not saved: give it again as logits="):
        back.attach(bert, tokenizer)
    back.attach(bert, tokenizer, logits=first_two)
    np.testing.assert_allclose(back.subject.logits(np.arange(6)).numpy(), pefs.logits, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------------------ many classes


def test_tokens_are_called_as_they_are_read(language_model):
    """With their leading space, as they are written into a text."""
    tokenizer = tiny.bytes_tokenizer()
    model = tiny.gpt2_for("LMHeadModel", vocab_size=len(tokenizer))
    pefs = asked(model, tokenizer, TEXTS, classes=3)
    assert pefs.classes == ["guess 1", "guess 2", "guess 3", "anything else"]
    assert pefs.choices["outcomes"].shape == (6, 3)
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            z = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
        best = z.argsort(descending=True)[:3].tolist()
        assert pefs.choices["outcomes"][row].tolist() == best
        names = [pefs.facts["outcome_names"][str(code)] for code in best]
        assert names == [tokenizer.decode([code]) for code in best]
        # "Anything else" is never what was predicted.
        assert pefs.predictions[row] == names[0]
        p = torch.softmax(z.double(), 0)
        np.testing.assert_allclose(pefs.probabilities[row, :3], p[best], atol=1e-6)
        assert pefs.probabilities[row, 3] == pytest.approx(1 - float(p[best].sum()), abs=1e-6)


def test_all_tokens_have_names(language_model, words):
    pefs = asked(language_model, words, TEXTS, classes="all")
    assert len(pefs.classes) == tiny.N_TOKENS
    assert pefs.classes[words.convert_tokens_to_ids("king")] == "king"


# ------------------------------------------------------------------------------------------------------------------------ gold labels


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([0, 1, 3, 0, 0, 0], r"row 2 has the label 3, which is none of the model's 3 classes \(LABEL_0, LABEL_1, LABEL_2\), nor a number below 3"),
        ([0, -1, 0, 0, 0, 0], r"row 1 has the label -1"),
        ([0, 1.5, 0, 0, 0, 0], r"row 1 has the label 1\.5"),
        ([0, None, 0, 0, 0, 0], r"row 1 has the label nan"),
        (["LABEL_0", "other"] * 3, r"row 1 has the label 'other'"),
        ([[0], 1, 0, 0, 0, 0], r"row 0 has the label \[0\]"),
    ],
)
def test_labels_out_of_range_are_named(labels, found, bert, tokenizer):
    with pytest.raises(ValueError, match=found):
        extract_fishers(bert, tokenizer, pd.DataFrame({"text": TEXTS, "label": labels}), fisher="empirical")


def test_the_empirical_fisher_needs_labels(bert, tokenizer):
    with pytest.raises(ValueError, match="fisher='empirical' takes the gradient for the gold label: the examples need a column 'label'"):
        extract_fishers(bert, tokenizer, TEXTS, fisher="empirical")
    with pytest.raises(ValueError, match="fisher='exact' is not known; choose one of 'true', 'empirical', 'predicted'"):
        extract_fishers(bert, tokenizer, TEXTS, fisher="exact")


def test_labels_of_many_labels(tokenizer):
    model = tiny.bert_for("SequenceClassification", num_labels=4, problem_type="multi_label_classification")
    with pytest.raises(ValueError, match=r"row 1 has the label 4, which is none of the model's 4 classes"):
        extract_fishers(model, tokenizer, pd.DataFrame({"text": TEXTS[:2], "label": [[0], [1, 4]]}), fisher="empirical")


def test_gold_tokens_that_a_model_does_not_know(language_model, words):
    with pytest.raises(ValueError, match=r"row 0 has the label 400, which is none of the model's 27 classes \(tokens\)"):
        extract_fishers(language_model, words, pd.DataFrame({"text": TEXTS[:1], "label": [400]}), fisher="empirical")


def test_a_gold_token_is_taken_as_it_is_written():
    """With its leading space, or without: both may follow a text."""
    tokenizer = tiny.bytes_tokenizer()
    model = tiny.gpt2_for("LMHeadModel", vocab_size=len(tokenizer))
    table = pd.DataFrame({"text": TEXTS[:3], "label": [" king", "s", 11]})
    pefs = asked(model, tokenizer, table, fisher="empirical")
    assert [tokenizer.decode([code]) for code in pefs.choices["labels"][:2, 0]] == [" king", "s"]
    assert pefs.choices["labels"][2, 0] == 11


# ------------------------------------------------------------------------------------------------------------------------ images


def test_images_may_stand_in_a_column_and_are_not_kept():
    draw = np.random.default_rng(0)
    pictures = [draw.standard_normal((3, 16, 16)).astype(np.float32) for _ in range(3)]
    by_list = asked(tiny.vit(), tiny.ImageProcessor(), pictures)
    by_table = asked(tiny.vit(), tiny.ImageProcessor(), pd.DataFrame({"image": pictures, "name": list("abc")}))
    np.testing.assert_array_equal(by_list.factors, by_table.factors)
    assert by_table.examples.columns.tolist() == ["name"]
    assert by_list.examples.columns.tolist() == []


@pytest.mark.parametrize(
    ("examples", "found"),
    [
        (
            pd.DataFrame({"text": ["a"]}),
            r"examples has 1 rows and the columns 'text': an image classifier needs images, in a column 'image' or as a list",
        ),
        ([], r"examples has 0 rows"),
        (pd.DataFrame({"image": []}), r"examples has 0 rows and the columns 'image'"),
    ],
)
def test_an_image_classifier_needs_images(examples, found):
    with pytest.raises(ValueError, match=found):
        extract_fishers(tiny.vit(), tiny.ImageProcessor(), examples)
