"""Shares of tokens for every architecture, and the table that opens the remainder: against a copy of every weight for every position."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import readers
import tiny
import torch
import twins
from torch import nn

from npeff_nb.explain.tokens import PARTS, token_shares, token_table
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.outputs import LabelWords, NextToken
from npeff_nb.fisher.parameters import describe_parameters
from npeff_nb.fisher.subject import Subject

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*examples go one by one:UserWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),  # torch's
]

FLOAT32 = 1e-4
"""Ratios of float32 sums that may cancel: 1e-4 of the whole, as the shares are promised to add up."""


def split_by_copies(subject: Subject, direction: dict[str, torch.Tensor], row: int) -> dict[str, tuple[np.ndarray, float]]:
    """By parameter: the shares of tokens (T,) and what belongs to none, from the definition, in float64.

    A module that reads the text position by position is called position by position, each time with weights θ + α_t g of its own; what autograd says
    of α_t is that position's part.  Any other module is called with one α.
    """
    model = readers.double_of(subject)
    own, ids = len(subject.batches.encoded["input_ids"][row]), subject.batches.batch(np.array([row]))["input_ids"]
    ids = ids.flatten(0, -2)  # a row for each class word that is read behind the text
    canonical = {id(p): name for name, p in model.named_parameters()}
    reads = set(map(id, model.modules()))
    if model.config.is_encoder_decoder:
        looks_back = [m for block in model.decoder.block for m in (block.layer[1].EncDecAttention.k, block.layer[1].EncDecAttention.v)]
        reads = set(map(id, [*model.encoder.modules(), *looks_back]))
    reads.discard(id(model.get_output_embeddings()))  # a read-out over the vocabulary belongs to no token
    alphas: list[tuple[str, bool, torch.Tensor]] = []
    for module in list(model.modules()):
        owned = {own: canonical[id(p)] for own, p in module.named_parameters(recurse=False) if canonical[id(p)] in direction}
        if not owned:
            continue
        untouched = copy.deepcopy(module)

        def forward(x, module=module, owned=owned, plain=untouched):
            positions = x.shape[:2] == ids.shape and id(module) in reads
            if isinstance(module, nn.Embedding):
                positions = torch.equal(x, ids) if model.config.is_encoder_decoder else x.shape[1:] == ids.shape[1:]
            steps = x.shape[1] if positions else 1
            own_alphas = {own: torch.zeros(steps, dtype=torch.float64, requires_grad=True) for own in owned}
            alphas.extend((owned[own], positions, alpha) for own, alpha in own_alphas.items())
            parameters = dict(module.named_parameters(recurse=False))

            def at(t, x):
                moved = {own: p + own_alphas[own][t] * direction[owned[own]].double() if own in owned else p for own, p in parameters.items()}
                return torch.func.functional_call(plain, moved, (x,))

            return torch.cat([at(t, x[:, t : t + 1]) for t in range(steps)], 1) if positions else at(0, x)

        module.forward = forward
    log_p = torch.log_softmax(readers.decomposed_logits(subject, model, row), -1)
    parts = [torch.autograd.grad(value, [alpha for *_, alpha in alphas], retain_graph=True, allow_unused=True) for value in log_p]
    scale = (log_p.detach() / 2).exp()
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for at, (name, positions, alpha) in enumerate(alphas):
        rows = torch.stack([s * (torch.zeros_like(alpha) if of_row[at] is None else of_row[at]) for s, of_row in zip(scale, parts, strict=True)])
        tokens, rest = found.get(name, (torch.zeros(len(log_p), own), torch.zeros(len(log_p))))
        found[name] = (tokens + rows[:, :own], rest + rows[:, own:].sum(1)) if positions else (tokens, rest + rows[:, 0])
    projection = sum(tokens.sum(1) + rest for tokens, rest in found.values())
    along = projection / projection.square().sum()
    return {name: ((along @ tokens.double()).numpy(), float(along @ rest.double())) for name, (tokens, rest) in found.items()}


def part_of(kind: str, value: torch.Tensor) -> str:
    if value.ndim == 1:
        return "norm and bias"
    if kind.startswith(("attention", "MLP")):
        return kind.split()[0]
    return "embedding" if kind == "embedding" else "other"


@pytest.mark.parametrize("name", readers.READERS)
def test_shares_and_the_table_are_those_of_the_definition(name):
    pefs = readers.fishers(name)
    subject, rows = pefs.subject, np.arange(len(pefs))
    direction = readers.random_direction(subject, list(pefs.parameters["name"]))
    kinds = describe_parameters(subject.model).set_index("name")["kind"]
    shares = token_shares(subject, direction, rows)
    for of_tokens, rest in shares.values():
        assert of_tokens.sum() + rest == pytest.approx(1, abs=FLOAT32)
    for row in rows[:2]:
        of_tokens, _ = shares[row]
        table = token_table(subject, direction, row)
        assert table["share"].sum() == pytest.approx(1, abs=FLOAT32)
        np.testing.assert_allclose(table[list(PARTS)].sum(axis=1), table["share"], atol=1e-12)

        expected = split_by_copies(subject, direction, row)
        matrices = {name: split for name, split in expected.items() if direction[name].ndim > 1}
        np.testing.assert_allclose(of_tokens, sum(at for at, _ in matrices.values()), atol=FLOAT32)
        tokens, remainder = table[table["module"].isna()], table[table["module"].notna()].set_index("module")
        assert tokens["position"].tolist() == list(range(len(of_tokens)))
        np.testing.assert_allclose(tokens["share"] - tokens["norm and bias"], of_tokens, atol=FLOAT32)
        for part in PARTS:
            of_part = [at for name, (at, _) in expected.items() if part_of(kinds[name], direction[name]) == part]
            np.testing.assert_allclose(tokens[part], sum(of_part, start=np.zeros(len(of_tokens))), atol=FLOAT32)
        modules: dict[str, float] = {}
        for name, (_, of_none) in expected.items():
            path = name.rpartition(".")[0]
            modules[path] = modules.get(path, 0.0) + of_none
        for path, of_none in modules.items():
            assert remainder["share"].get(path, 0.0) == pytest.approx(of_none, abs=FLOAT32), path
        assert set(remainder.index) <= set(modules)


def test_tokens_stand_beside_their_words(npeff):
    texts = ["who is the players", "the city"]
    pefs = extract_fishers(npeff.subject.model, tiny.tokenizer(), texts, parameters="all", features="dense", progress=False)
    table = token_table(pefs.subject, readers.random_direction(pefs.subject, list(pefs.parameters["name"])), 0)
    assert list(table.columns) == ["position", "token", "word", "module", "share", *PARTS]
    tokens = table[table["module"].isna()]
    assert tokens["token"].tolist() == ["[CLS]", "who", "is", "the", "play", "##er", "##s", "[SEP]"]
    assert tokens["word"].tolist() == [None, "who", "is", "the", "players", "players", "players", None]
    remainder = table[table["module"].notna()]
    assert set(remainder["module"]) == {"bert.pooler.dense", "classifier"}  # nothing else of this model sees no positions
    assert remainder["share"].abs().is_monotonic_decreasing
    assert remainder[["token", "word", "position"]].isna().all(axis=None)


def test_matrices_alone_need_no_second_look(npeff):
    """The default parameters hold no bias and no norm: the table's shares are the shares."""
    shares, rest = token_shares(npeff.subject, npeff.direction(0), np.array([3]))[3]
    table = token_table(npeff.subject, npeff.direction(0), 3)
    tokens = table[table["module"].isna()]
    np.testing.assert_allclose(tokens["share"], shares, atol=1e-6)
    assert not table["norm and bias"].any()
    assert table["share"][table["module"].notna()].sum() == pytest.approx(rest, abs=1e-6)
    assert table["module"].dropna().tolist() == ["bert.pooler.dense"]


def test_a_direction_that_an_example_does_not_feel_gives_an_empty_table(npeff):
    nothing = {name: torch.zeros_like(value) for name, value in npeff.direction(0).items()}
    table = token_table(npeff.subject, nothing, 0)
    assert not table["share"].any()
    assert table["module"].isna().all()


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_the_model_is_left_as_it_was(error, monkeypatch):
    pefs = readers.fishers("BERT")
    subject, before = pefs.subject, twins.state(pefs.subject.model)
    direction = readers.random_direction(subject, list(pefs.parameters["name"]))
    if error is None:
        token_table(subject, direction, 0)
    else:
        calls, ask = [], subject.raw_logits

        def raw_logits(batch):
            calls.append(batch)
            if len(calls) == 2:  # the first is the recorded pass, the second the one for biases and norms
                assert subject.model.bert.embeddings.LayerNorm._forward_hooks
                raise error("stopped here")
            return ask(batch)

        token_shares(subject, direction, np.array([0]))  # the tape is made
        monkeypatch.setattr(subject, "raw_logits", raw_logits)
        with pytest.raises(error, match="stopped here"):
            token_table(subject, direction, 0)
    twins.assert_untouched(subject.model, before)


def test_one_token_alone_has_the_share_that_it_has_in_company():
    """A batch of one-token texts looks as if nothing had positions."""
    model, tokenizer = tiny.gpt2_for("LMHeadModel"), tiny.tokenizer(types=False)
    pefs = extract_fishers(model, tokenizer, tiny.TEXTS[:2], output=NextToken("every"), classes=3, features="sketch", progress=False)
    direction = readers.random_direction(pefs.subject, list(pefs.parameters["name"]))
    first = pefs.examples.index[pefs.examples["position"] == 0].to_numpy()
    alone, among = token_shares(pefs.subject, direction, first), token_shares(pefs.subject, direction, np.arange(len(pefs)))
    for row in first:
        assert alone[row][0].shape == (1,)
        np.testing.assert_allclose(alone[row][0], among[row][0], atol=FLOAT32)
        np.testing.assert_allclose(alone[row][0], [1], atol=FLOAT32)  # no layer of these is without positions
        assert token_table(pefs.subject, direction, row)["share"].tolist() == pytest.approx([1], abs=FLOAT32)


def test_a_table_of_words_that_answers_share_is_split_by_what_it_looks_up():
    """Nine positions of the answers (three classes of three tokens) look words up in the same table as the nine tokens of the text."""
    tokenizer = tiny.t5_tokenizer()
    model, texts = tiny.t5(vocab_size=len(tokenizer)), ["what is the city of the king ?", "who"]
    said = LabelWords(["who is king", "what is city", "how is year"])
    pefs = extract_fishers(model, tokenizer, texts, output=said, parameters="shared*", features="sketch", progress=False)
    assert list(pefs.parameters["name"]) == ["shared.weight"]
    direction = readers.random_direction(pefs.subject, ["shared.weight"])
    for row, (shares, rest) in token_shares(pefs.subject, direction, np.arange(2)).items():
        ((expected, of_none),) = split_by_copies(pefs.subject, direction, row).values()
        assert abs(of_none) > 0.01  # the answers' own words, and the read-out
        np.testing.assert_allclose(shares, expected, atol=FLOAT32)
        assert rest == pytest.approx(of_none, abs=FLOAT32)


def test_a_tokenizer_s_marks_are_kept_beside_the_words():
    pefs = readers.fishers("Llama, words", texts=["the kings play", "who"])
    table = token_table(pefs.subject, readers.random_direction(pefs.subject, list(pefs.parameters["name"])), 0)
    tokens = table[table["module"].isna()]
    assert tokens["token"].tolist()[:4] == ["<s>", "▁what", "▁the", "▁king"]
    assert tokens["word"].tolist()[:5] == [None, "what", "the", "kings", "kings"]


@pytest.mark.parametrize("name", ["GPT-2, every position", "Llama, long words"])
def test_shares_do_not_hang_on_the_batch(name):
    """The vocabulary is read out at the positions that any text of the batch asks for: by chance as many as there are tokens."""
    pefs = readers.fishers(name)
    direction = readers.random_direction(pefs.subject, list(pefs.parameters["name"]))
    together = token_shares(pefs.subject, direction, np.arange(len(pefs)))
    for row in range(3):
        shares, rest = token_shares(pefs.subject, direction, np.array([row]))[row]
        np.testing.assert_allclose(together[row][0], shares, atol=FLOAT32)
        assert together[row][1] == pytest.approx(rest, abs=FLOAT32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_direction_in_single_precision_serves_models_in_any(dtype):
    """Directions are lifted in float32."""
    model = readers.bert().to(dtype)
    pefs = extract_fishers(model, tiny.tokenizer(), readers.TEXTS, parameters="all", features="sketch", progress=False)
    direction = {name: value.float() for name, value in readers.random_direction(pefs.subject, list(pefs.parameters["name"])).items()}
    shares, rest = token_shares(pefs.subject, direction, np.array([0]))[0]
    table = token_table(pefs.subject, direction, 0)
    assert shares.sum() + rest == pytest.approx(1, abs=FLOAT32)
    assert table["share"].sum() == pytest.approx(1, abs=FLOAT32)
    np.testing.assert_allclose((table["share"] - table["norm and bias"])[: len(shares)], shares, atol=FLOAT32)


def test_only_texts_have_tokens():
    inputs = torch.randn(3, 4, 5)
    pefs = extract_fishers(
        tiny.seeded(tiny.TimeMajor), inputs=inputs, logits=tiny.plain_logits, examples=pd.DataFrame({"x": range(3)}), batch_size=1, progress=False
    )
    direction = readers.random_direction(pefs.subject, list(pefs.parameters["name"]))
    for ask in (lambda: token_table(pefs.subject, direction, 0), lambda: token_shares(pefs.subject, direction, np.array([0]))):
        with pytest.raises(TypeError, match=r"no texts \(ReadyBatches\) and have no tokens: only texts can be split over tokens"):
            ask()
