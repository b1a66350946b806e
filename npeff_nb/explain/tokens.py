"""Which tokens a coefficient comes from: an exact split.

A Fisher's energy along a unit direction h is hᵀF̂h = Σ_y P_y² with P_y = ⟨a_y, h⟩, and the gradient a_y of a layer that works position by
position is a sum over positions t.  So P_y = Σ_t p_yt and

    share_t = Σ_y P_y p_yt / Σ_y P_y²,        Σ_t share_t = 1.

A share can be negative: the token speaks against the component.  Layers that see no positions (a pooler on top of the first token) and
parameters shared by all positions (biases, norms) form a remainder of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from npeff_nb.fisher.batches import TextBatches
from npeff_nb.fisher.completeness import tape_for
from npeff_nb.fisher.outputs import is_encoder_decoder
from npeff_nb.fisher.subject import Subject

ELSEWHERE = "elsewhere"
_LOOKS_BACK = re.compile(r"(EncDecAttention|encoder_attn|crossattention).*\.(k|v|key|value|k_proj|v_proj)\.")
"""Keys and values of cross-attention, as the common families name them."""


def token_shares(subject: Subject, direction: Mapping[str, Tensor], rows: np.ndarray) -> dict[int, tuple[np.ndarray, float]]:
    """For each example: the share of every one of its tokens (T,), and of what belongs to no token; together 1.

    An example whose Fisher has nothing along the direction gets zeros.
    """
    tape = tape_for(subject, list(direction), quiet=True)
    assert isinstance(subject.batches, TextBatches), "tokens are split for texts only"
    answers = is_encoder_decoder(subject.model)

    def reads_text(name: str) -> bool:
        # The decoder's positions are the answer's, but where it looks back at the text.
        return not answers or "decoder" not in name.split(".") or bool(_LOOKS_BACK.search(name))

    out: dict[int, tuple[np.ndarray, float]] = {}
    for batch in subject.batches.batches(np.asarray(rows)):
        lengths = np.array([len(subject.batches.encoded["input_ids"][row]) for row in batch])
        width = int(lengths.max())
        at_tokens, elsewhere = np.zeros((len(batch), 1, width)), np.zeros((len(batch), 1))  # broadcast over the K rows
        with subject.gradients(tape, batch) as found:
            for name, uses in found.gradients:
                for use in uses:
                    part = use.along(direction[name].reshape(direction[name].shape[0], -1)).double().cpu().numpy()  # (n, K, T)
                    if part.shape[2] == width and part.shape[2] > 1 and reads_text(name):
                        at_tokens = at_tokens + part
                    else:
                        elsewhere = elsewhere + part.sum(2)
        projection = at_tokens.sum(2) + elsewhere  # P_y, (n, K)
        at_tokens, elsewhere = at_tokens + np.zeros((*projection.shape, 1)), elsewhere + np.zeros(projection.shape)
        energy = (projection**2).sum(1)
        scale = np.divide(1.0, energy, out=np.zeros_like(energy), where=energy > 0)
        shares = np.einsum("nk,nkt,n->nt", projection, at_tokens, scale)
        rest = np.einsum("nk,nk,n->n", projection, elsewhere, scale)
        for at, row in enumerate(batch):
            own = slice(0, lengths[at])
            # What stands on padding (nothing, where the mask is respected) is not lost silently either.
            outside = shares[at].sum() - shares[at, own].sum()
            out[int(row)] = (shares[at, own], float(rest[at] + outside))
    return out


def words(tokenizer: Any, text: str, shares: np.ndarray, text_pair: str | None = None, ids: list[int] | None = None) -> tuple[list[dict], list[dict]]:
    """Shares of tokens put back on the words of the text, in reading order, and those of special tokens apart.

    Parameters
    ----------
    ids : the tokens that the model read, where that is not what the tokenizer makes of the text cut to as many: a prompt is cut at its beginning and
        has no mark at its end.

    Returns
    -------
    words : [{"text", "share", "space"}], as written in the text, ``space`` telling whether a space stood before.
    asides : [{"name", "share"}], one entry a special token.
    """
    if not getattr(tokenizer, "is_fast", False):
        return _words_without_offsets(tokenizer, text, shares, text_pair)
    pair = () if text_pair is None else (text_pair,)
    encoded, first = _as_read(tokenizer, text, pair, len(shares), ids)
    part = slice(first, first + len(shares))
    sources = [text, *pair]
    merged: list[dict] = []
    asides: dict[str, float] = {}
    last = None
    names = tokenizer.convert_ids_to_tokens(encoded["input_ids"][part] if ids is None else ids)
    places = zip(encoded.word_ids(0)[part], encoded.sequence_ids(0)[part], encoded["offset_mapping"][part], names, shares, strict=True)
    for word, sequence, (start, end), name, share in places:
        if word is None or start == end:
            asides[name] = asides.get(name, 0.0) + float(share)
            last = None
            continue
        source = sources[sequence or 0]
        piece = source[start:end]
        space = (start > 0 and source[start - 1].isspace()) or piece[:1].isspace()
        # Some tokenizers call a whole text one word: letters that follow letters are what makes a word here.
        within = not space and start > 0 and source[start].isalnum() and source[start - 1].isalnum()
        piece = piece.strip()
        if last == (sequence, word) and within:
            merged[-1]["text"] += piece
            merged[-1]["share"] += float(share)
        else:
            merged.append({"text": piece, "share": float(share), "space": bool(merged) and (space or start == 0)})
        last = (sequence, word)
    return merged, [{"name": name, "share": share} for name, share in asides.items()]


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


def _words_without_offsets(tokenizer: Any, text: str, shares: np.ndarray, text_pair: str | None) -> tuple[list[dict], list[dict]]:
    pair = () if text_pair is None else (text_pair,)
    ids = tokenizer(text, *pair, truncation=True, max_length=len(shares), verbose=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    names = tokenizer.convert_ids_to_tokens(ids)
    marks = ("Ġ", "▁", " ")
    marked = any(name.startswith(marks) for name in names)  # pieces that begin a word say so
    merged: list[dict] = []
    asides: dict[str, float] = {}
    for i, name, share in zip(ids, names, shares, strict=True):
        if i in special:
            asides[name] = asides.get(name, 0.0) + float(share)
        elif merged and (name.startswith("##") or (marked and not name.startswith(marks))):
            merged[-1]["text"] += name.removeprefix("##")
            merged[-1]["share"] += float(share)
        else:
            merged.append({"text": name.lstrip("".join(marks)), "share": float(share), "space": bool(merged)})
    return merged, [{"name": name, "share": share} for name, share in asides.items()]
