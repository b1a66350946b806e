"""Search: components whose words, labels or top examples have what the person looks for.

``widgets/src/search.js`` does the same for a page without a kernel; ``widgets/test/search_cases.json`` holds both to the same answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from npeff_nb._progress import Progress
    from npeff_nb.widgets.bundle import Bundle
    from npeff_nb.widgets.desk import Desk

SEARCHED = 2000
"""Characters of a text that are searched: a page shows no more of it either."""
LONGEST_QUERY = 200
AROUND = 24
"""Characters of a text that are shown before and after what was found."""
LABEL, VALUE, PHRASE, INSIDE = 40.0, 10.0, 1.0, 0.04
"""What a hit weighs against one top example that has every word: the component's own words say most; parts of words in all top examples say less
than one whole word."""


@dataclass(frozen=True)
class Entry:
    """What is searched of one component."""

    label: str  # its own words: the default label
    values: list[str]  # values of label columns among its top examples
    texts: list[str]  # its top examples


def entries(bundle: Bundle) -> list[Entry]:
    """One for each component; also what a saved page carries along to be searched."""
    tables = [bundle.npeff.examples[column].astype(object).to_numpy() for column in bundle.columns]
    spoken = bundle.corpus is not None
    return [
        Entry(
            label=bundle.default_labels[k],
            values=list(dict.fromkeys(str(values[row]) for values in tables for row in top)),
            texts=[str(bundle.texts[row])[:SEARCHED] for row in top] if spoken else [],
        )
        for k, top in enumerate(bundle.usage.top)
    ]


_known: WeakKeyDictionary[Bundle, list[tuple[Entry, str, list[str]]]] = WeakKeyDictionary()
"""Entries with head (label and values) and texts casefolded, made at the first search of a bundle."""


def find(desk: Desk, content: dict[str, Any], tell: Progress) -> dict[str, Any]:
    """Found: component numbers, most relevant first, and why each was found."""
    if desk.bundle not in _known:
        _known[desk.bundle] = folded(entries(desk.bundle))
    found = matches(_known[desk.bundle], str(content.get("query", "")))
    return {"components": [k for k, _ in found], "why": [why for _, why in found]}


def folded(of: Sequence[Entry]) -> list[tuple[Entry, str, list[str]]]:
    """Entries as :func:`matches` takes them."""
    return [(entry, "\n".join([entry.label, *entry.values]).casefold(), [text.casefold() for text in entry.texts]) for entry in of]


def matches(of: Sequence[tuple[Entry, str, list[str]]], query: str) -> list[tuple[int, str]]:
    """Numbers of the entries in which some top example, together with the component's label and values, has every word of ``query``, and why.

    Case does not matter.  Words of the query may be beginnings of words; in examples any part of a word counts, though less.
    """
    words = query[:LONGEST_QUERY].casefold().split()
    if not words:
        return []
    phrase = " ".join(words)
    starts = [re.compile(r"(?:^|[\W_])" + re.escape(word)) for word in words]
    found = []
    for k, (entry, head, texts) in enumerate(of):
        missing = [word for word, start in zip(words, starts, strict=True) if not start.search(head)]
        at = [i for i, text in enumerate(texts) if all(word in text for word in missing)]
        if missing and not at:
            continue
        label = entry.label.casefold()
        if all(start.search(label) for start in starts):
            score, why = LABEL, "in its words"
        elif not missing:
            score, why = VALUE, "labels: " + ", ".join(v for v in entry.values if any(start.search(v.casefold()) for start in starts))
        else:
            shown = next((i for i in at if phrase in texts[i]), at[0])
            score, why = 0.0, f"{len(at)} of {len(texts)} top examples: {_snippet(entry.texts[shown], texts[shown], phrase, missing[0])}"
        for i in at:
            has = [word in texts[i] for word in words]
            if any(has):
                whole = all(start.search(texts[i]) for start, there in zip(starts, has, strict=True) if there)
                score += (1.0 if whole else INSIDE) * sum(has) / len(words) + PHRASE * (len(words) > 1 and phrase in texts[i])
        found.append((score, k, why))
    return [(k, why) for _, k, why in sorted(found, key=lambda one: (-one[0], one[1]))]


def _snippet(text: str, folded_text: str, phrase: str, word: str) -> str:
    what = phrase if phrase in folded_text else word
    at = folded_text.find(what)  # folding may change lengths (ß); the place is good enough to look at
    low, high = max(0, at - AROUND), min(len(text), at + len(what) + AROUND)
    return ("…" if low else "") + " ".join(text[low:high].split()) + ("…" if high < len(text) else "")
