"""What a component's examples have in common, quickly enough for hundreds of components over a hundred thousand examples.

Bands of its coefficient, near-duplicates folded, words and labels that are commoner among its top examples than among all, examples that are
alike.  What depends on all examples is counted once, by objects that the caller keeps.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

BANDS = 4
"""Intervals of equal width between zero and the largest coefficient."""
SAMPLED = 16
"""Examples that stand for a band."""
SAME = 0.85
"""Two texts are near-duplicates when this share of the words of either stand in both."""
Z = 1.959963984540054
"""A normal variable lies within ± so many standard deviations with probability 95 %."""
AT_LEAST = 3
"""A word that stands in fewer top examples says nothing about them."""
MOST_WORDS, MOST_VALUES = 8, 4

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?", re.UNICODE)


# ---------------------------------------------------------------------------------------------------------------------- bands


@dataclass(frozen=True)
class Band:
    """The examples with low < coefficient ≤ high; the last band has those with none."""

    low: float
    high: float
    examples: int
    share: float  # of all examples


def bands(w: np.ndarray) -> list[Band]:
    """Bands of one component's coefficients (n,): quarters of the largest, highest first, then zero."""
    edges, place = _placed(w)
    counts = np.bincount(place, minlength=len(edges)).tolist()
    lower = [*edges[1:], 0.0]
    return [Band(low, high, count, count / len(w)) for low, high, count in zip(lower, edges, counts, strict=True)]


def band_rows(w: np.ndarray, band: int) -> np.ndarray:
    """The examples of one of :func:`bands`, in their own order.

    Raises
    ------
    ValueError
        There is no such band.
    """
    edges, place = _placed(w)
    if not 0 <= band < len(edges):
        raise ValueError(f"band {band} does not exist: this component has {len(edges)} (0 to {len(edges) - 1})")
    return np.flatnonzero(place == band)


def sample(w: np.ndarray, band: int, n: int = SAMPLED, seed: int = 0) -> np.ndarray:
    """At most ``n`` examples of a band, drawn at random but always the same, by falling coefficient."""
    w = np.ascontiguousarray(w)
    rows = band_rows(w, band)
    if len(rows) > n:
        rows = np.random.default_rng([seed, band]).choice(rows, n, replace=False)
    return rows[np.lexsort((rows, -w[rows]))]


def _placed(w: np.ndarray) -> tuple[list[float], np.ndarray]:
    """Upper ends of the bands, falling to zero (only zero where nothing uses the component), and the band of every example."""
    w = np.ascontiguousarray(w)
    largest = float(w.max())
    rising = largest * np.arange(BANDS + 1) / BANDS if largest > 0 else np.zeros(1)
    return rising[::-1].tolist(), len(rising) - 1 - np.searchsorted(rising, w)


# ---------------------------------------------------------------------------------------------------------------------- words


class Corpus:
    """The words of many texts: in how many texts each stands (counted when first asked), and the words of single texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def words(self, row: int) -> list[str]:
        """In reading order, without case."""
        return words_of(self.texts[row])

    @cached_property
    def everywhere(self) -> Counter[str]:
        """Word -> number of texts that have it."""
        found: Counter[str] = Counter()
        for text in self.texts:
            found.update(set(words_of(text)))
        return found

    def distinguishing(self, top: np.ndarray, most: int = 3) -> list[str]:
        """Words that stand in many top texts and in few of the others, in the order in which people write them."""
        here: dict[str, list[int]] = {}
        for row in top:
            words = self.words(row)
            for word in set(words):
                here.setdefault(word, []).append(words.index(word))
        # Difference of the two shares: a rare word that stands in two top examples says less than "how" in all of them.
        gain = {w: len(at) / len(top) - self.everywhere[w] / len(self) for w, at in here.items() if len(at) >= 2}
        best = sorted(gain, key=lambda w: (-gain[w], w))
        kept = [w for w in best if gain[w] >= max(0.15, 0.4 * gain[best[0]])][:most]
        return sorted(kept, key=lambda w: np.mean(here[w]))


def words_of(text: str) -> list[str]:
    """A text's words in reading order, without case."""
    if text.isascii():  # the same, several times faster
        return _WORD.findall(text.lower())
    return [word.casefold() for word in _WORD.findall(text)]


def folded(texts: Sequence[str], top: np.ndarray, share: float = SAME) -> dict[int, list[int]]:
    """Near-duplicates among the examples ``top``: position in ``top`` of each that remains -> positions of those that are folded into it.

    A text is folded into the first one before it that has the same words in the same order, or whose different words are the same but for a few:
    at least this ``share`` of the words that stand in either text stand in both.  Texts without words have to be equal.
    """
    kept: dict[int, list[int]] = {}
    seen: list[tuple[int, list[str] | str, set[str]]] = []
    for at, row in enumerate(top):
        words = words_of(texts[row])
        own, different = words or texts[row].strip(), set(words)
        for first, other, theirs in seen:
            if own == other or (different and len(different & theirs) >= share * len(different | theirs)):
                kept[first].append(at)
                break
        else:
            kept[at] = []
            seen.append((at, own, different))
    return kept


# ---------------------------------------------------------------------------------------------------------------------- what is commoner here


@dataclass(frozen=True)
class Coded:
    """A column as numbers, for what is asked of it once a component."""

    codes: np.ndarray  # (n,), −1 where nothing is known
    names: list[Any]

    @classmethod
    def of(cls, values: Any) -> Coded:
        """Of any column; what is coded already stays as it is."""
        if isinstance(values, Coded):
            return values
        codes, names = pd.factorize(np.asarray(values, dtype=object))
        return cls(codes, list(names))

    @cached_property
    def counts(self) -> np.ndarray:
        """(names,) examples of each."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.names))

    @cached_property
    def members(self) -> dict[int, np.ndarray]:
        """Code -> examples that have it, −1 among them where something is not known."""
        order = np.argsort(self.codes, kind="stable")
        found, at = np.unique(self.codes[order], return_index=True)
        return dict(zip(found.tolist(), np.split(order, at[1:]), strict=True))


@dataclass(frozen=True)
class Enriched:
    """A word or a value of a column that is commoner among the top examples than among all."""

    name: str
    count: int  # top examples that have it
    of: int  # top examples
    low: float  # 95 % interval of count / of (Wilson)
    high: float
    everywhere: float  # share of all examples


def enriched(corpus: Corpus | None, columns: Mapping[str, Coded], top: np.ndarray) -> list[tuple[str, list[Enriched]]]:
    """Words and labels that are commoner among the examples ``top`` than among all, by column (``"word"`` first), the most distinguishing first.

    Told are those whose share among all lies below the 95 % interval of their share among ``top``, by how far it does; columns without any are left
    out.  Near-duplicates would count several times: give ``top`` :func:`folded`.
    """
    if not len(top):
        return []
    found = []
    if corpus is not None:
        here = Counter(word for row in top for word in set(corpus.words(row)))
        some = {word: (count, corpus.everywhere[word] / len(corpus)) for word, count in here.items() if count >= AT_LEAST}
        found.append(("word", _commoner(some, len(top), MOST_WORDS)))
    for column, coded in columns.items():
        codes, counts = np.unique(coded.codes[top], return_counts=True)
        share = coded.counts / len(coded.codes)
        some = {str(coded.names[code]): (int(count), float(share[code])) for code, count in zip(codes, counts, strict=True) if code >= 0}
        found.append((column, _commoner(some, len(top), MOST_VALUES)))
    return [(column, values) for column, values in found if values]


def _commoner(shares: Mapping[str, tuple[int, float]], of: int, most: int) -> list[Enriched]:
    """``shares``: name -> (count here, share everywhere)."""
    low, high = wilson(np.array([count for count, _ in shares.values()], dtype=float), of)
    told = [Enriched(name, count, of, float(a), float(b), share) for (name, (count, share)), a, b in zip(shares.items(), low, high, strict=True)]
    return sorted((one for one in told if one.low > one.everywhere), key=lambda one: (one.everywhere - one.low, one.name))[:most]


def wilson(count: np.ndarray, of: int) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval of a share, from how often it was seen among ``of``."""
    p, z = count / of, Z * Z / of
    middle, half = p + z / 2, Z * np.sqrt((p * (1 - p) + z / 4) / of)
    return np.clip((middle - half) / (1 + z), 0, 1), np.clip((middle + half) / (1 + z), 0, 1)


# ---------------------------------------------------------------------------------------------------------------------- what is alike


def alike(W: np.ndarray, w: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``most`` examples whose coefficients (n, r) point most along ``w`` (r,), and the cosines, falling; only those with any in common."""
    used = np.flatnonzero(w)
    along = W[:, used] @ w[used]
    lengths = np.sqrt(np.einsum("ij,ij->i", W, W)) * np.linalg.norm(w)
    cosine = np.divide(along, lengths, out=np.zeros(len(W)), where=along > 0)
    rows = np.flatnonzero(cosine)
    if most < len(rows):
        rows = rows[np.argpartition(-cosine[rows], most)[:most]]
    rows = rows[np.lexsort((rows, -cosine[rows]))]
    return rows, np.minimum(cosine[rows], 1)
