"""Coefficients over tokens: against gradients of weights that every position has for itself, and back onto the words."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import transformers
import twins
from torch import nn

from npeff_nb import NPEFF
from npeff_nb.directions.lift import random_direction
from npeff_nb.explain.tokens import token_shares, words
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.outputs import LabelWords, NextToken


def brute_shares(model: nn.Module, encoded: dict, direction: dict[str, torch.Tensor]) -> tuple[np.ndarray, float]:
    """Shares (T,) and the remainder from the definition, in float64.

    Every position gets its own zero copy of each weight to add to the shared one; what autograd says of the copy of position t is that
    position's part of the gradient.  Modules that see no positions get one copy: the remainder.  Rows are √p_y ∇log p_y of every class: any
    factor of the same Fisher gives the same shares.
    """
    double = copy.deepcopy(model).double()
    length = encoded["input_ids"].shape[1]
    copies: dict[tuple[str, bool], torch.Tensor] = {}
    for path, module in double.named_modules():
        name = f"{path}.weight"
        if name not in direction:
            continue

        def forward(x, module=module, name=name):
            if isinstance(module, nn.Embedding):
                own = torch.zeros(length, *module.weight.shape, dtype=torch.float64, requires_grad=True)
                copies[name, True] = own
                # The padding row takes no part in autograd's gradient of the table, wherever it stands.
                counts = torch.ones_like(x) if module.padding_idx is None else x != module.padding_idx
                return module.weight[x] + torch.stack([own[t][x[:, t]] for t in range(length)], 1) * counts[..., None]
            by_position = x.ndim == 3
            own = torch.zeros(length if by_position else 1, *module.weight.shape, dtype=torch.float64, requires_grad=True)
            copies[name, by_position] = own
            added = torch.einsum("nti,toi->nto", x, own) if by_position else x @ own[0].T
            return nn.functional.linear(x, module.weight, module.bias) + added

        module.forward = forward
    log_p = torch.log_softmax(double(**encoded).logits[0], -1)
    assert {name for name, _ in copies} == set(direction)
    at_tokens, elsewhere = np.zeros((len(log_p), length)), np.zeros(len(log_p))
    for y in range(len(log_p)):
        found = torch.autograd.grad(log_p[y], list(copies.values()), retain_graph=True)
        for (name, by_position), gradient in zip(copies, found, strict=True):
            along = log_p[y].detach().exp().sqrt().item() * (gradient * direction[name].double()).flatten(1).sum(1).numpy()
            if by_position:
                at_tokens[y] += along
            else:
                elsewhere[y] += along.sum()
    projection = at_tokens.sum(1) + elsewhere
    energy = (projection**2).sum()
    return projection @ at_tokens / energy, float(projection @ elsewhere / energy)


WITH_WORDS = [
    "bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.attention.self.value.weight", "bert.encoder.layer.1.output.dense.weight",
    "bert.pooler.dense.weight",
]  # fmt: skip


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("parameters", ["default", WITH_WORDS], ids=["matrices", "with words"])
def test_shares_are_those_of_the_definition(side, parameters):
    """Padded batches against single examples, whichever side the tokenizer would pad on: a text's positions are its own."""
    model, tokenizer = tiny.bert(), tiny.tokenizer(side)
    pefs = extract_fishers(model, tokenizer, tiny.TEXTS, features="dense", parameters=parameters, batch_size=4, progress=False)
    direction = random_direction(NPEFF(1, n_init=1, random_state=0).fit(pefs).direction(0), 0)
    rows = np.array([6, 0, 3, 2, 7])
    for row, (shares, rest) in token_shares(pefs.subject, direction, rows).items():
        encoded = dict(tokenizer([tiny.TEXTS[row]], return_tensors="pt"))
        assert len(shares) == encoded["input_ids"].shape[1]
        assert shares.sum() + rest == pytest.approx(1, abs=1e-4)
        expected, expected_rest = brute_shares(model, encoded, direction)
        # Ratios of float32 sums that may cancel: 1e-4 of the whole.
        np.testing.assert_allclose(shares, expected, atol=1e-4)
        assert rest == pytest.approx(expected_rest, abs=1e-4)


def test_shares_and_remainder_sum_to_one(npeff):
    direction = npeff.direction(0)
    found = token_shares(npeff.subject, direction, np.arange(24))
    assert sorted(found) == list(range(24))
    for row, (shares, rest) in found.items():
        assert shares.sum() + rest == pytest.approx(1, abs=1e-4), row


def test_biases_and_norms_belong_to_no_token(tokenizer, bert):
    names = ["bert.encoder.layer.0.output.dense.bias", "bert.encoder.layer.1.output.LayerNorm.weight"]
    pefs = extract_fishers(bert, tokenizer, tiny.TEXTS, features="dense", parameters=names, progress=False)
    direction = NPEFF(1, n_init=1, random_state=0).fit(pefs).direction(0)
    for shares, rest in token_shares(pefs.subject, direction, np.arange(8)).values():
        assert not shares.any()
        assert rest == pytest.approx(1, abs=1e-6)


def test_a_direction_that_an_example_does_not_feel_gives_zeros(npeff):
    nothing = {name: torch.zeros_like(value) for name, value in npeff.direction(0).items()}
    for shares, rest in token_shares(npeff.subject, nothing, np.array([0, 1])).values():
        assert not shares.any()
        assert rest == 0


def test_the_model_is_left_as_it_was(npeff):
    direction, before = npeff.direction(0), twins.state(npeff.subject.model)
    token_shares(npeff.subject, direction, np.arange(5))
    twins.assert_untouched(npeff.subject.model, before)


def spoken(found: list[dict]) -> list[tuple[str, int, bool]]:
    return [(word["text"], round(word["share"]), word["space"]) for word in found]


def test_pieces_are_joined_and_special_tokens_stand_aside(tokenizer):
    text = "Who is running, the Players?"  # [CLS] who is run [UNK]?...
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    found, asides = words(tokenizer, text, 10.0 ** np.zeros(len(pieces)))
    assert "".join((" " if w["space"] else "") + w["text"] for w in found) == text
    assert asides == [{"name": "[CLS]", "share": 1.0}, {"name": "[SEP]", "share": 1.0}]


def test_shares_of_a_word_s_pieces_add_up(tokenizer):
    text = "the players play"
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == ["[CLS]", "the", "play", "##er", "##s", "play", "[SEP]"]
    found, asides = words(tokenizer, text, np.array([1, 10, 100, 200, 300, 1000, 2]))
    assert spoken(found) == [("the", 10, False), ("players", 600, True), ("play", 1000, True)]
    assert {a["name"]: a["share"] for a in asides} == {"[CLS]": 1, "[SEP]": 2}


def test_a_pair_is_read_in_order_and_its_separators_are_added(tokenizer):
    found, asides = words(tokenizer, "the king", np.array([1, 10, 20, 2, 30, 40, 4]), "is who")
    assert spoken(found) == [("the", 10, False), ("king", 20, True), ("is", 30, True), ("who", 40, True)]
    assert {a["name"]: a["share"] for a in asides} == {"[CLS]": 1, "[SEP]": 6}


def test_equal_words_side_by_side_stay_two(tokenizer):
    found, _ = words(tokenizer, "the the", np.array([0, 1, 2, 0]))
    assert spoken(found) == [("the", 1, False), ("the", 2, True)]


def test_a_cut_text_shows_what_the_model_saw(tokenizer):
    cut = tiny.tokenizer(model_max_length=5)
    assert len(cut("the players play in the city", truncation=True)["input_ids"]) == 5
    found, asides = words(cut, "the players play in the city", np.array([1, 10, 20, 30, 2]))
    assert spoken(found) == [("the", 10, False), ("player", 50, True)]  # the cut went through the word
    assert len(asides) == 2


def test_a_cut_text_s_shares_fit_its_words(bert):
    short = tiny.tokenizer(model_max_length=6)
    with pytest.warns(UserWarning, match="longer than the 6 tokens"):
        pefs = extract_fishers(bert, short, tiny.TEXTS, features="dense", progress=False)
    direction = NPEFF(1, n_init=1, random_state=0).fit(pefs).direction(0)
    for row, (shares, _) in token_shares(pefs.subject, direction, np.arange(8)).items():
        found, asides = words(short, tiny.TEXTS[row], shares)
        assert sum(w["share"] for w in found) + sum(a["share"] for a in asides) == pytest.approx(shares.sum(), abs=1e-9)


def test_a_tokenizer_without_offsets():
    """ByT5 knows bytes only: every byte is a word of its own, the end mark stands aside."""
    byte = transformers.ByT5Tokenizer()
    found, asides = words(byte, "abc", np.array([1.0, 2.0, 3.0, 4.0]))
    assert [(w["text"], w["share"]) for w in found] == [("a", 1), ("b", 2), ("c", 3)]
    assert asides == [{"name": "</s>", "share": 4.0}]


class Pieces:
    """A slow tokenizer that marks its pieces as given."""

    all_special_ids = (0,)

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def __call__(self, text, *pair, **settings):
        return {"input_ids": [0, *range(1, 1 + len(self.pieces))]}

    def convert_ids_to_tokens(self, ids):
        return ["<s>", *self.pieces]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["Ġthe", "Ġplay", "ers"], [("the", 1, False), ("players", 5, True)]),
        (["▁the", "▁play", "ers"], [("the", 1, False), ("players", 5, True)]),
        (["the", "Ġplay", "ers"], [("the", 1, False), ("players", 5, True)]),  # GPT-2 marks no first word
        (["the", "play", "##ers"], [("the", 1, False), ("players", 5, True)]),
    ],
)
def test_marks_of_words_are_read_where_there_are_no_offsets(pieces, expected):
    found, asides = words(Pieces(*pieces), "the players", np.array([7.0, 1.0, 2.0, 3.0]))
    assert spoken(found) == expected
    assert asides == [{"name": "<s>", "share": 7.0}]


def test_a_slow_tokenizer_goes_all_the_way():
    """From extraction to a profile's words with ByT5's bytes."""
    byte = transformers.ByT5Tokenizer()
    model = tiny.bert(vocab_size=len(byte))
    examples = pd.DataFrame({"text": ["who?", "a king", "the city"]})
    npeff = NPEFF(1, n_init=1, random_state=0).fit(extract_fishers(model, byte, examples, features="dense", progress=False))
    npeff.profile(0, progress=False)
    for row, told in npeff.profiles[0]["tokens"].items():
        assert sum(w["share"] for w in told["words"]) + sum(a["share"] for a in told["asides"]) == pytest.approx(1, abs=1e-4), row


# ------------------------------------------------------------------------------------------------------------------------ language models

PROMPT = "who is the king of the city ? " * 6 + "when"
CUT = [PROMPT, f"how {PROMPT}", "who"]


def gpt2_and_its_tokens():
    return tiny.gpt2_for("LMHeadModel"), tiny.tokenizer(types=False)


def byte_pairs():
    tokenizer = tiny.bytes_tokenizer()
    return tiny.gpt2_for("LMHeadModel", vocab_size=len(tokenizer)), tokenizer


def llama_and_its_tokens():
    tokenizer = tiny.llama_tokenizer()
    return tiny.llama_for("CausalLM", vocab_size=len(tokenizer)), tokenizer


ASKED = {
    "next token": (gpt2_and_its_tokens, NextToken(), tiny.TEXTS),
    "every position": (gpt2_and_its_tokens, NextToken("every"), tiny.TEXTS[:3]),
    "every position, byte pairs": (byte_pairs, NextToken("every"), tiny.TEXTS[:3]),
    "words behind a prompt": (llama_and_its_tokens, LabelWords(["king", "city"], "what {text} is"), tiny.TEXTS),
    "cut prompts": (gpt2_and_its_tokens, NextToken(), CUT),
    "cut prompts, byte pairs": (byte_pairs, NextToken(), CUT),
}


def place_of(ids: list[int], full: list[int]) -> int:
    """Where in all of a text's tokens those stand that the model was given."""
    (found,) = (at for at in range(len(full)) if full[at : at + len(ids)] == ids)
    return found


@pytest.mark.filterwarnings("ignore:.*texts are longer than:UserWarning")
@pytest.mark.parametrize(("make", "output", "texts"), ASKED.values(), ids=ASKED.keys())
def test_shares_stand_at_the_words_that_were_read(make, output, texts):
    """A prompt has no end mark, is cut at its beginning, and may end anywhere in the text: each token's share goes to its own word."""
    model, tokenizer = make()
    pefs = extract_fishers(model, tokenizer, texts, output=output, features="dense", classes=3, progress=False)
    npeff = NPEFF(1, n_init=1, random_state=0).fit(pefs)
    npeff.profile(0, progress=False)
    told = npeff.profiles[0]["tokens"]
    shares = token_shares(pefs.subject, npeff.direction(0), np.array(list(told), dtype=int))
    for row, (of_tokens, rest) in shares.items():
        text, ids = pefs.subject.batches.texts[row], pefs.subject.batches.encoded["input_ids"][row]
        assert len(of_tokens) == len(ids)
        full = tokenizer(text, return_offsets_mapping=True)
        at = place_of(ids, full["input_ids"])
        expected: list[tuple[str, float]] = []  # words with their tokens' shares, and ...
        aside = rest
        for (start, end), share in zip(full["offset_mapping"][at : at + len(ids)], of_tokens, strict=True):
            if start == end:  # ... what stands for nothing in the text
                aside += share
            elif not expected or text[start].isspace() or text[start - 1].isspace() or not (text[start].isalnum() and text[start - 1].isalnum()):
                expected.append((text[start:end].strip(), share))
            else:
                expected[-1] = (expected[-1][0] + text[start:end], expected[-1][1] + share)
        assert [w["text"] for w in told[str(row)]["words"]] == [word for word, _ in expected]
        np.testing.assert_allclose([w["share"] for w in told[str(row)]["words"]], [share for _, share in expected], atol=1e-4)
        assert sum(a["share"] for a in told[str(row)]["asides"]) == pytest.approx(aside, abs=1e-4)


def test_a_tokenizer_that_does_not_cut_at_spaces_still_gives_words():
    """Llama 2's has no step before its pieces: all of a text is one "word" to it."""
    tokenizer = tiny.llama_tokenizer()
    assert set(tokenizer("what is years ?").word_ids()) == {None, 0}
    found, asides = words(tokenizer, "what is years ?", np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    assert spoken(found) == [("what", 2, False), ("is", 3, True), ("years", 9, True), ("?", 6, True)]
    assert asides == [{"name": "<s>", "share": 1.0}]


def test_an_answer_s_positions_are_not_taken_for_the_text_s():
    """Nine positions of the answers (three classes of three tokens) beside nine tokens of a text: the decoder's share belongs to no word of it."""
    tokenizer = tiny.t5_tokenizer()
    model, texts = tiny.t5(vocab_size=len(tokenizer)), ["what is the city of the king ?"]
    assert len(tokenizer(texts[0])["input_ids"]) == 9
    said = LabelWords(["who is king", "what is city", "how is year"])
    pefs = extract_fishers(model, tokenizer, texts, output=said, parameters="decoder.*SelfAttention.v*", features="dense", progress=False)
    direction = NPEFF(1, n_init=1, random_state=0).fit(pefs).direction(0)
    shares, rest = token_shares(pefs.subject, direction, np.array([0]))[0]
    assert not shares.any()
    assert rest == pytest.approx(1, abs=1e-4)
