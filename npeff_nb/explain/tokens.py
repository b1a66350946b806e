"""Which tokens a coefficient comes from: an exact split.

A Fisher's energy along a unit direction h is hᵀF̂h = Σ_y P_y² with P_y = ⟨a_y, h⟩, and the gradient a_y of a layer that works position by
position is a sum over positions t.  So P_y = Σ_t p_yt and

    share_t = Σ_y P_y p_yt / Σ_y P_y²,        Σ_t share_t = 1.

A share can be negative: the token speaks against the component.

**The remainder** is what :func:`token_shares` gives to no token: biases and norms, whose gradients are kept summed over positions; layers that see no
positions (a pooler or classifier on top of one token); a language model's read-out over the vocabulary; class words behind a prompt, and an
encoder–decoder's answer.  Other matrices and embeddings (of words, positions, types) stand at the token that they read.  :func:`token_table` opens
the remainder for one example: biases and norms of modules that work position by position are split over the tokens too, and what is left is listed by
module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from npeff_nb.fisher.batches import TextBatches
from npeff_nb.fisher.completeness import tape_for
from npeff_nb.fisher.gradients import Tape
from npeff_nb.fisher.layers import Outer, Use, rule_for
from npeff_nb.fisher.outputs import is_encoder_decoder
from npeff_nb.fisher.parameters import describe_parameters
from npeff_nb.fisher.subject import Pass, Subject, alone_with

ELSEWHERE = "elsewhere"
PARTS = ("attention", "MLP", "embedding", "norm and bias", "other")
"""Columns of :func:`token_table`, by kind of parameter (:func:`npeff_nb.fisher.parameters.describe_parameters`)."""
ROUNDING = 1e-6
"""A module's remainder below this is the rounding of float32 sums."""
_LOOKS_BACK = re.compile(r"(EncDecAttention|encoder_attn|crossattention).*\.(k|v|key|value|k_proj|v_proj)\.")
"""Keys and values of cross-attention, as the common families name them."""
_OF_A_HALF = re.compile(r"(^|\.)(encoder|decoder)\.")


def token_shares(subject: Subject, direction: Mapping[str, Tensor], rows: np.ndarray) -> dict[int, tuple[np.ndarray, float]]:
    """For each example: the share of every one of its tokens (T,), and of what belongs to no token; together 1.

    An example whose Fisher has nothing along the direction gets zeros.
    """
    tape = tape_for(subject, list(direction), quiet=True)
    out: dict[int, tuple[np.ndarray, float]] = {}
    for batch in subject.batches.batches(np.asarray(rows)):
        parts, _ = _parts(subject, direction, tape, batch)
        lengths = [len(ids) for ids in token_ids(subject, batch)]
        at_tokens = sum((at for at, _ in parts.values()), start=np.zeros((len(batch), 1, max(lengths))))  # (n, K, T)
        elsewhere = sum((rest for _, rest in parts.values()), start=np.zeros((len(batch), 1)))
        along = _per_energy(at_tokens.sum(2) + elsewhere)
        shares, remainder = np.einsum("nk,nkt->nt", along, at_tokens), np.einsum("nk,nk->n", along, elsewhere)
        out |= {int(row): (shares[at, : lengths[at]], float(remainder[at])) for at, row in enumerate(batch)}
    return out


def token_table(subject: Subject, direction: Mapping[str, Tensor], row: int) -> pd.DataFrame:
    """Where one example's coefficient comes from, as finely as it can be said exactly: its tokens in reading order, then the remainder by module.

    Columns: ``position``, ``token`` as the tokenizer names it, and ``word``, the word of the text that it is part of (None for special tokens);
    ``module`` in the remainder's rows; ``share``; and what of it comes from matrices of ``attention``, ``MLP`` and ``embedding``, from vectors
    (``norm and bias``) and from ``other`` matrices (pooler, head, adapters).  The five add up to ``share``, and ``share`` adds up to 1 over all rows.

    A token's share here is that of :func:`token_shares` and its part of ``norm and bias``, which stands in the remainder there.
    """
    tape = tape_for(subject, list(direction), quiet=True)
    batch = np.array([row])
    parts, found = _parts(subject, direction, tape, batch)
    (ids,) = token_ids(subject, batch)
    vectors = [name for name in parts if direction[name].ndim == 1]
    split = _vectors_by_position(subject, direction, vectors, batch, found)
    parts |= {name: (at, parts[name][1] - at.sum(2)) for name, at in split.items()}
    projection = sum((at.sum(2) + rest for at, rest in parts.values()), start=np.zeros((1, 1)))
    (along,) = _per_energy(projection)

    kinds = describe_parameters(subject.model).set_index("name")["kind"]
    at_tokens, modules = np.zeros((len(ids), len(PARTS))), dict[str, np.ndarray]()
    for name, (at, rest) in parts.items():
        kind = kinds[name].split()[0]
        column = PARTS.index("norm and bias" if direction[name].ndim == 1 else kind if kind in PARTS else "other")
        at_tokens[:, column] += along @ at[0]
        modules.setdefault(name.rpartition(".")[0], np.zeros(len(PARTS)))[column] += along @ rest[0]
    modules = {path: of for path, of in modules.items() if abs(of).max() > ROUNDING}
    batches = _texts(subject)
    pieces = _pieces(subject.tokenizer, batches.texts[row], len(ids), None if batches.pairs is None else batches.pairs[row], ids)
    spoken = _words_of(pieces)
    largest_first = sorted(modules, key=lambda path: -abs(modules[path].sum()))
    values = np.concatenate([at_tokens, *(modules[path][None] for path in largest_first)])
    nothing = [None] * len(largest_first)
    table = pd.DataFrame(
        {
            "position": pd.array([*range(len(ids)), *nothing], dtype="Int64"),
            "token": pd.Series([*(name for name, *_ in pieces), *nothing], dtype=object),  # as objects: None stays None
            "word": pd.Series([*spoken, *nothing], dtype=object),
            "module": pd.Series([*([None] * len(ids)), *largest_first], dtype=object),
            "share": values.sum(1),
        }
    )
    return table.assign(**dict(zip(PARTS, values.T, strict=True)))


def _texts(subject: Subject) -> TextBatches:
    if not isinstance(subject.batches, TextBatches):
        raise TypeError(f"these examples are no texts ({type(subject.batches).__name__}) and have no tokens: only texts can be split over tokens")
    return subject.batches


def token_ids(subject: Subject, batch: np.ndarray) -> list[list[int]]:
    """The tokens of each example's text."""
    return [list(_texts(subject).encoded["input_ids"][row]) for row in batch]


def _reading(subject: Subject, batch: np.ndarray) -> tuple[int, int]:
    """How often each text is read (once before each class word, where these are sequences), and over how many positions."""
    *copies, width = subject.batches.batch(batch)["input_ids"].shape[1:]
    return (copies[0] if copies else 1), width


def _parts(subject: Subject, direction: Mapping[str, Tensor], tape: Tape, batch: np.ndarray) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], Pass]:
    """Each parameter's part of P_y: at every token (n, K, T), and elsewhere (n, K)."""
    ids, n = token_ids(subject, batch), len(batch)
    if _reading(subject, batch) == (1, 1) and subject.batches.batch_size != 1:
        # One token alone looks like a layer without positions: a longer text in the same batch tells them apart.
        batch = np.append(batch, np.argmax([len(of_text) for of_text in _texts(subject).encoded["input_ids"]]))
    copies, width = _reading(subject, batch)
    answers = is_encoder_decoder(subject.model)
    lengths = np.array([len(of_one) for of_one in ids])
    longest = lengths.max()
    own = np.arange(width) < lengths[:, None, None]  # (n, 1, width): padding, and class words behind a prompt, are no tokens of the text

    read_out = getattr(getattr(subject.model, "get_output_embeddings", lambda: None)(), "weight", None)
    says = next((name for name, p in subject.model.named_parameters() if p is read_out), None)

    def of_text(name: str, use: Use, positions: int) -> bool:
        looked_up = use.left if isinstance(use, Outer) and use.rows is not None else None
        if looked_up is None and name == says:
            return False  # over the vocabulary; at some positions or all, as the batch has it
        # Positions may be looked up once for all copies.
        if width == 1 or not (positions == copies * width or (looked_up is not None and positions == width)):
            return False
        if not answers or _reads_text(name):
            return True
        # A table that both halves share is told by what it looks up.
        same = looked_up is not None and all(looked_up[i, 0, : len(of_one)].tolist() == of_one for i, of_one in enumerate(ids))
        return same and not _OF_A_HALF.search(name)

    out: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    with subject.gradients(tape, batch) as found:
        for name, uses in found.gradients:
            at_tokens, elsewhere = np.zeros((n, found.rows, longest)), np.zeros((n, found.rows))
            for use in uses:
                part = _along(use, direction[name])[:n].double().cpu().numpy()  # (n, K, positions)
                if of_text(name, use, part.shape[2]):
                    part = part.reshape(n, part.shape[1], -1, width).sum(2)
                    at_tokens += (part * own)[:, :, :longest]
                    elsewhere += (part * ~own).sum(2)
                else:
                    elsewhere += part.sum(2)
            out[name] = at_tokens, elsewhere
    return out, found


def _reads_text(name: str) -> bool:
    """Whether a parameter of an encoder–decoder works on the text: the decoder's positions are the answer's, but where it looks back."""
    half = _OF_A_HALF.search(name)
    return half is not None and (half.group(2) == "encoder" or bool(_LOOKS_BACK.search(name)))


def _vectors_by_position(
    subject: Subject, direction: Mapping[str, Tensor], names: list[str], batch: np.ndarray, found: Pass
) -> dict[str, np.ndarray]:
    """Biases' and norms' parts of P_y at every token, (1, K, T), for one example; those of modules without its positions are left out.

    A module that works position by position sees T inputs as it would see T examples: its formula, asked so, gives one gradient a position.
    """
    (ids,), reading = token_ids(subject, batch), _reading(subject, batch)
    wanted = {id(p): name for name, p in subject.model.named_parameters() if name in names}
    calls: list[tuple[nn.Module, dict[str, str], Tensor, Tensor]] = []

    def record(module: nn.Module, inputs: tuple, named: dict, output: Any) -> Any:
        given = inputs[0] if inputs else next(iter(named.values()), None)
        if not isinstance(given, Tensor) or given.shape[:-1] != reading or output.shape[:-1] != reading:
            return None
        added = torch.zeros_like(output, requires_grad=True)  # its gradient is the output's
        owned = {own: wanted[id(p)] for own, p in module.named_parameters(recurse=False, remove_duplicate=False) if id(p) in wanted}
        calls.append((module, owned, given.detach().flatten(0, 1), added))
        return output + added

    answers, handles = is_encoder_decoder(subject.model), []
    with alone_with(subject.model):
        try:
            for path, module in subject.model.named_modules():
                owns = any(id(p) in wanted for p in module.parameters(recurse=False))
                if owns and rule_for(module) is not None and (not answers or _reads_text(f"{path}.")):
                    handles.append(module.register_forward_hook(record, with_kwargs=True))
            with torch.enable_grad():
                z = subject.raw_logits(batch)
        finally:
            for handle in handles:
                handle.remove()
        cotangents = subject.recipe.cotangents(z.detach(), found.logits[:1], {key: value[:1] for key, value in found.chosen.items()})[:, : found.rows]
        leaves = [added for *_, added in calls]
        felt = [torch.autograd.grad(z, leaves, c.to(z), retain_graph=True, allow_unused=True) for c in cotangents.unbind(1)] if calls else []
    out: dict[str, np.ndarray] = {}
    for at, (module, owned, given, added) in enumerate(calls):
        b = torch.stack([torch.zeros_like(added) if of_row[at] is None else of_row[at] for of_row in felt], 2).flatten(0, 1)  # (positions, K, out)
        rule = rule_for(module)
        assert rule is not None, "only modules with a formula are recorded"
        wide = torch.promote_types(given.dtype, torch.float32)
        sides = rule(module, given.to(wide), b.to(wide))
        for own, name in owned.items():
            part = _along(sides[own](), direction[name])[:, :, 0].T  # (K, positions)
            of_tokens = part.reshape(len(part), *reading).sum(1)[:, : len(ids)]
            out[name] = out.get(name, 0) + of_tokens.double().cpu().numpy()[None]
    return out


def _per_energy(projection: np.ndarray) -> np.ndarray:
    """P_y / Σ_y P_y² (n, K); zeros where there is nothing."""
    energy = (projection**2).sum(1)
    return projection * np.divide(1.0, energy, out=np.zeros_like(energy), where=energy > 0)[:, None]


def _along(use: Use, value: Tensor) -> Tensor:
    """:meth:`~npeff_nb.fisher.layers.Outer.along` a direction of any shape and precision."""
    return use.along(value.reshape(value.shape[0] if value.ndim else 1, -1).to(use.right if isinstance(use, Outer) else use.gradient))


def words_of_example(
    subject: Subject, row: int, shares: np.ndarray, rest: float, *, power: int = 1, joined: bool = True
) -> tuple[list[dict], list[dict]]:
    """:func:`words` of one example, with what belongs to no token (``rest``) among the asides.

    ``power``: tokens' and rest's numbers are raised to it before those of a word are summed (2 for lengths of gradients).
    """
    batches = _texts(subject)
    spoken, asides = words(
        subject.tokenizer, batches.texts[row], shares**power, None if batches.pairs is None else batches.pairs[row],
        list(batches.encoded["input_ids"][row]), joined=joined,
    )  # fmt: skip
    if abs(rest) > 1e-9:
        asides.append({"name": ELSEWHERE, "share": rest**power})
    return spoken, asides


def words(
    tokenizer: Any, text: str, shares: np.ndarray, text_pair: str | None = None, ids: list[int] | None = None, *, joined: bool = True
) -> tuple[list[dict], list[dict]]:
    """Shares of tokens put back on the words of the text, in reading order, and those of special tokens apart.

    Parameters
    ----------
    ids : the tokens that the model read, where that is not what the tokenizer makes of the text cut to as many: a prompt is cut at its beginning and
        has no mark at its end.
    joined : False leaves every token by itself, called as the tokenizer calls it.

    Returns
    -------
    words : [{"text", "share", "space"}], as written in the text, ``space`` telling whether a space stood before.
    asides : [{"name", "share"}], one entry a special token.
    """
    merged: list[dict] = []
    asides: dict[str, float] = {}
    for (name, piece, joins, space), share in zip(_pieces(tokenizer, text, len(shares), text_pair, ids), shares, strict=True):
        if piece is None:
            asides[name] = asides.get(name, 0.0) + float(share)
        elif not joined:
            merged.append({"text": name, "share": float(share), "space": bool(merged)})
        elif joins:
            merged[-1]["text"] += piece
            merged[-1]["share"] += float(share)
        else:
            merged.append({"text": piece, "share": float(share), "space": space})
    return merged, [{"name": name, "share": share} for name, share in asides.items()]


_Piece = tuple[str, str | None, bool, bool]
"""A token's name, its part of the text (None: it has none), whether that goes on with the word before, whether a space stood before it."""


def _pieces(tokenizer: Any, text: str, length: int, text_pair: str | None, ids: list[int] | None) -> list[_Piece]:
    pair = () if text_pair is None else (text_pair,)
    if not getattr(tokenizer, "is_fast", False):
        return _pieces_without_offsets(tokenizer, text, length, pair)
    encoded, first = _as_read(tokenizer, text, pair, length, ids)
    part = slice(first, first + length)
    sources = [text, *pair]
    out: list[_Piece] = []
    last, begun = None, False
    names = tokenizer.convert_ids_to_tokens(encoded["input_ids"][part] if ids is None else ids)
    places = zip(encoded.word_ids(0)[part], encoded.sequence_ids(0)[part], encoded["offset_mapping"][part], names, strict=True)
    for word, sequence, (start, end), name in places:
        if word is None or start == end:
            out.append((name, None, False, False))
            last = None
            continue
        source = sources[sequence or 0]
        piece = source[start:end]
        space = (start > 0 and source[start - 1].isspace()) or piece[:1].isspace()
        # Some tokenizers call a whole text one word: letters that follow letters are what makes a word here.
        within = not space and start > 0 and source[start].isalnum() and source[start - 1].isalnum()
        out.append((name, piece.strip(), last == (sequence, word) and within, begun and (space or start == 0)))
        last, begun = (sequence, word), True
    return out


def _as_read(tokenizer: Any, text: str, pair: tuple[str, ...], length: int, ids: list[int] | None) -> tuple[Any, int]:
    """The text's tokens with their places, and which of them was the first that the model read."""
    cut = tokenizer(text, *pair, return_offsets_mapping=True, truncation=True, max_length=length, verbose=False)
    if ids is None or list(cut["input_ids"]) == list(ids):
        return cut, 0
    whole = tokenizer(text, *pair, return_offsets_mapping=True, verbose=False)
    found = list(whole["input_ids"])
    first = next((at for at in range(len(found) - length + 1) if found[at : at + length] == list(ids)), None)
    if first is None:
        raise ValueError(
            f"the {length} tokens that the model read are no part of what this tokenizer makes of {text[:60]!r}: attach the right tokenizer"
        )
    return whole, first


def _pieces_without_offsets(tokenizer: Any, text: str, length: int, pair: tuple[str, ...]) -> list[_Piece]:
    ids = tokenizer(text, *pair, truncation=True, max_length=length, verbose=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    names = tokenizer.convert_ids_to_tokens(ids)
    marks = ("Ġ", "▁", " ")
    marked = any(name.startswith(marks) for name in names)  # pieces that begin a word say so
    out: list[_Piece] = []
    begun = False
    for i, name in zip(ids, names, strict=True):
        if i in special:
            out.append((name, None, False, False))
            continue
        joins = begun and (name.startswith("##") or (marked and not name.startswith(marks)))
        out.append((name, name.removeprefix("##") if joins else name.lstrip("".join(marks)), joins, begun))
        begun = True
    return out


def _words_of(pieces: list[_Piece]) -> list[str | None]:
    """The whole word that each token is part of."""
    at, merged = list[int | None](), list[str]()
    for _, piece, joins, _ in pieces:
        if piece is not None and joins:
            merged[-1] += piece
        elif piece is not None:
            merged.append(piece)
        at.append(None if piece is None else len(merged) - 1)
    return [None if i is None else merged[i] for i in at]
