"""What does the model predict?  Every answer comes down to logits (n, c) over classes of some kind.

One class here is one way of asking: it turns a table of examples into batches and reads the logits of the asked prediction off the model's output.
``extract_fishers(..., output=None)`` picks by the model (:func:`output_for`); label words and every-position readings are asked for.
"""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from npeff_nb.fisher.batches import Batches, ImageBatches, TextBatches, as_table, encode, examples_table, padded
from npeff_nb.fisher.factors import Sampled

__all__ = ["ImageClasses", "LabelWords", "MaskedToken", "MultiLabel", "NextToken", "Output", "Own", "Sampled", "SequenceClasses", "TokenClasses"]


class Output:
    """A way to ask a model for a prediction.

    Attributes
    ----------
    family : ``"categorical"`` (one of c classes) or ``"bernoulli"`` (any of c labels, each by itself).
    vocabulary : whether classes are tokens, whose names are looked up when they occur.
    spreads : whether a text becomes several examples; the table then has a column ``text_row`` with the row each came from.
    """

    family: ClassVar[str] = "categorical"
    vocabulary: ClassVar[bool] = False
    spreads: bool = False

    def prepare(self, model: nn.Module, tokenizer: Any, examples: Any, batch_size: int | None, quiet: bool = False) -> tuple[Batches, pd.DataFrame]:
        """Batches, and the table with one row for each example that is asked about."""
        table = examples_table(examples)
        return texts_as_batches(model, tokenizer, table, batch_size, quiet), table

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """(n, c), with its graph."""
        raise NotImplementedError

    def class_names(self, model: nn.Module, c: int) -> list[str]:
        """Names of the c classes."""
        named = getattr(getattr(model, "config", None), "id2label", None) or {}
        return [str(named.get(i, i)) for i in range(c)]

    def facts(self) -> dict[str, Any]:
        """Kind and settings, as plain values."""
        settings: dict[str, Any] = asdict(self) if is_dataclass(self) else {}
        return {"kind": type(self).__name__, **settings}


@dataclass(frozen=True)
class SequenceClasses(Output):
    """One of c classes for a whole text (or pair of texts), by a sequence classifier."""

    def prepare(self, model: nn.Module, tokenizer: Any, examples: Any, batch_size: int | None, quiet: bool = False) -> tuple[Batches, pd.DataFrame]:
        # A decoder's classifier finds a text's end by its padding token: without one, texts come alone.
        decoder = "past_key_values" in _accepted(model)
        if decoder and getattr(getattr(model, "config", None), "pad_token_id", None) is None:
            batch_size = 1
        return super().prepare(model, tokenizer, examples, batch_size, quiet)

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        found = getattr(run(model, batch), "logits", None)
        if found is None or found.ndim != 2:
            shape = None if found is None else tuple(found.shape)
            raise ValueError(
                f"{type(model).__name__} gives logits of shape {shape}; expected (examples, classes), as a sequence classifier does. "
                "For another model pass output= or logits=, a function (model, batch) -> (n, c)"
            )
        return found


@dataclass(frozen=True)
class MultiLabel(SequenceClasses):
    """Any of c labels for a text, each by itself: c independent yes/no predictions with probability sigmoid(z)."""

    family: ClassVar[str] = "bernoulli"


@dataclass(frozen=True)
class ImageClasses(SequenceClasses):
    """One of c classes for an image.

    ``examples`` has a column ``image`` (arrays or PIL images), or is a list of images; ``tokenizer`` is the processor.
    """

    def prepare(self, model: nn.Module, tokenizer: Any, examples: Any, batch_size: int | None, quiet: bool = False) -> tuple[Batches, pd.DataFrame]:
        table = as_table(examples).rename(columns={"text": "image"}) if not isinstance(examples, pd.DataFrame) else as_table(examples)
        if "image" not in table.columns or not len(table):
            raise ValueError(
                f"examples has {len(table)} rows and the columns {', '.join(map(repr, table.columns)) or 'none'}: an image classifier needs "
                "images, in a column 'image' or as a list"
            )
        # Pictures stay out of the table that is saved: it is JSON.
        return ImageBatches(tokenizer, table["image"].tolist(), batch_size), table.drop(columns="image")


@dataclass(frozen=True)
class TokenClasses(Output):
    """One of c classes for every word of a text.  Each word is an example of its own: the table repeats the text and adds ``word`` and ``position``.

    A word of several tokens is read at its first one, as such models are trained.  A column ``label`` with one value a word is spread over the words.
    """

    spreads: ClassVar[bool] = True  # type: ignore[misc]

    def prepare(self, model: nn.Module, tokenizer: Any, examples: Any, batch_size: int | None, quiet: bool = False) -> tuple[Batches, pd.DataFrame]:
        table = examples_table(examples)
        texts = table["text"].tolist()
        encoded, cut = encode(model, tokenizer, texts, quiet=quiet)
        if not getattr(tokenizer, "is_fast", False):
            raise TypeError(f"{type(tokenizer).__name__} does not tell where words begin: token classification needs a fast tokenizer")
        rows: list[dict[str, Any]] = []
        source, read_at = [], []
        for i, text in enumerate(texts):
            found = tokenizer(text, truncation=True, max_length=len(encoded["input_ids"][i]), return_offsets_mapping=True, verbose=False)
            words = found.word_ids(0)
            firsts = [at for at, word in enumerate(words) if word is not None and word != (words[at - 1] if at else None)]
            labels: Any = table["label"].iloc[i] if "label" in table.columns else None
            spread = isinstance(labels, (list, tuple, np.ndarray)) and len(labels) >= len(firsts)
            for number, at in enumerate(firsts):
                last = max(j for j, word in enumerate(words) if word == words[at])
                start, end = found["offset_mapping"][at][0], found["offset_mapping"][last][1]
                rows.append({"word": text[start:end], "position": number} | ({"label": labels[number]} if spread else {}))
                source.append(i)
                read_at.append(at)
        every = table.iloc[source].reset_index(drop=True).assign(text_row=source)
        every = every.assign(**{column: [row.get(column, every[column].iloc[j] if column in every else None) for j, row in enumerate(rows)]
                                for column in dict.fromkeys(key for row in rows for key in row)})  # fmt: skip
        repeated = {key: [values[i] for i in source] for key, values in encoded.items()} | {"read_at": read_at}
        return TextBatches(tokenizer, repeated, [texts[i] for i in source], batch_size=batch_size, cut=cut), every

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        return _at(run(model, batch).logits, batch["read_at"])


@dataclass(frozen=True)
class NextToken(Output):
    """The next token after a text, over the whole vocabulary of a causal language model (or the first token of an encoder–decoder's answer).

    ``positions="every"`` makes every position of a text an example: the table repeats the text and adds ``position``, ``token`` (the last one read)
    and ``next_token`` (the one that really follows).  A causal model sees nothing to the right of a position, so each is read off the text cut there.
    """

    positions: str = "last"
    vocabulary: ClassVar[bool] = True

    @property
    def spreads(self) -> bool:  # type: ignore[override]
        """Every position is an example."""
        return self.positions == "every"

    def __post_init__(self) -> None:
        if self.positions not in {"last", "every"}:
            raise ValueError(f"positions={self.positions!r}: choose 'last' or 'every'")

    def prepare(self, model: nn.Module, tokenizer: Any, examples: Any, batch_size: int | None, quiet: bool = False) -> tuple[Batches, pd.DataFrame]:
        table = examples_table(examples)
        texts = table["text"].tolist()
        encoded, cut = encode(model, tokenizer, texts, keep_end=not is_encoder_decoder(model), quiet=quiet)
        if is_encoder_decoder(model):
            if self.positions == "every":
                raise ValueError("positions='every' reads a causal language model; an encoder-decoder answers a whole text: leave it at 'last'")
            return TextBatches(tokenizer, encoded, texts, batch_size=batch_size, cut=cut), table
        encoded = _without_end(tokenizer, encoded)
        ids = encoded["input_ids"]
        if self.positions == "last":
            return TextBatches(tokenizer, encoded | {"read_at": [len(i) - 1 for i in ids]}, texts, batch_size=batch_size, cut=cut), table
        source = [i for i, of_text in enumerate(ids) for _ in of_text]
        ends = [end for of_text in ids for end in range(1, len(of_text) + 1)]
        every = table.iloc[source].reset_index(drop=True).assign(text_row=source)
        names = [tokenizer.convert_ids_to_tokens(of_text) for of_text in ids]
        every["position"] = [end - 1 for end in ends]
        every["token"] = [names[i][end - 1] for i, end in zip(source, ends, strict=True)]
        every["next_token"] = [names[i][end] if end < len(names[i]) else None for i, end in zip(source, ends, strict=True)]
        prefixes = {key: [values[i][:end] for i, end in zip(source, ends, strict=True)] for key, values in encoded.items()}
        prefixes["read_at"] = [end - 1 for end in ends]
        return TextBatches(tokenizer, prefixes, [texts[i] for i in source], batch_size=batch_size, cut=cut), every

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        if is_encoder_decoder(model):
            start = torch.full((len(batch["input_ids"]), 1), decoder_start(model), device=batch["input_ids"].device)
            return run(model, {**batch, "decoder_input_ids": start}).logits[:, 0]
        return _read(model, batch)


@dataclass(frozen=True)
class MaskedToken(Output):
    """The token under the one mask of each text, over the whole vocabulary of a masked language model."""

    vocabulary: ClassVar[bool] = True

    def prepare(self, model: nn.Module, tokenizer: Any, examples: Any, batch_size: int | None, quiet: bool = False) -> tuple[Batches, pd.DataFrame]:
        table = examples_table(examples)
        return _masked_batches(model, tokenizer, table["text"].tolist(), batch_size, quiet), table

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        return _at(run(model, batch).logits, batch["read_at"])


@dataclass(frozen=True)
class LabelWords(Output):
    """Words of a language model as classes: zero- or few-shot classification by a prompt.

    Parameters
    ----------
    words : the classes' words, or class name -> word.  A causal or encoder–decoder model may be given sequences of several tokens: then a class's
        logit is the log-probability of its sequence, Σ_t log p(w_t | prompt, w_<t).  A masked model takes words of one token.
    template : the prompt, with ``{text}`` (or any other column) in its place and, for a masked model, ``{mask}``.

    The classes' probabilities are those of the words among each other.  A word continues the prompt after one space, written or not.  The table
    gets the column ``prompt``.
    """

    words: tuple[str, ...] | list[str] | dict[str, str]
    template: str = "{text}"

    def __post_init__(self) -> None:
        words = self._words()
        if len(words) < 2 or len(set(words)) != len(words) or not all(isinstance(w, str) and w.strip() for w in words):
            raise ValueError(f"words={words!r}: give at least two different words, one for each class")

    def prepare(self, model: nn.Module, tokenizer: Any, examples: Any, batch_size: int | None, quiet: bool = False) -> tuple[Batches, pd.DataFrame]:
        table = examples_table(examples)
        prompts = [self._prompt(row, tokenizer) for row in table.to_dict("records")]
        table = table if self.template == "{text}" else table.assign(prompt=prompts)
        if is_masked(model):
            before = prompts[0].split(str(tokenizer.mask_token))[0]
            ids = [self._one_token(tokenizer, before, word) for word in self._words()]
            self._check_differ([[one] for one in ids])
            made = _masked_batches(model, tokenizer, prompts, batch_size, quiet)
            made.encoded["word_ids"] = [ids] * len(prompts)
            return made, table
        prompts = [prompt.rstrip() for prompt in prompts]
        words = [_continuation(tokenizer, "" if is_encoder_decoder(model) else prompts[0], word) for word in self._words()]
        self._check_differ(words)
        room = max(map(len, words))
        encoded, cut = encode(model, tokenizer, prompts, keep=0 if is_encoder_decoder(model) else room - 1,
                              keep_end=not is_encoder_decoder(model), quiet=quiet)  # fmt: skip
        encoded = _without_end(tokenizer, encoded) if not is_encoder_decoder(model) else encoded
        if room == 1:
            firsts = [word[0] for word in words]
            encoded["word_ids"] = [firsts] * len(prompts)
            if not is_encoder_decoder(model):
                encoded["read_at"] = [len(ids) - 1 for ids in encoded["input_ids"]]
            return TextBatches(tokenizer, encoded, prompts, batch_size=batch_size, cut=cut), table
        encoded["words"] = [words] * len(prompts)
        lengths = np.array([len(ids) for ids in encoded["input_ids"]])
        if not is_encoder_decoder(model):
            lengths = len(words) * (lengths + room - 1)
        collate = _collate_answers if is_encoder_decoder(model) else _collate_sequences
        return TextBatches(tokenizer, encoded, prompts, batch_size=batch_size, cut=cut, collate=collate, lengths=lengths), table

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        if is_masked(model):
            return _at(run(model, batch).logits, batch["read_at"]).gather(1, batch["word_ids"])
        if is_encoder_decoder(model):
            return self._answers(model, batch)
        if "targets" not in batch:
            return _read(model, batch).gather(1, batch["word_ids"])
        targets = batch["targets"]  # (b, c, L), −1 where a word is shorter
        b, c, longest = targets.shape
        flat = {key: batch[key].flatten(0, 1) for key in ("input_ids", "attention_mask")}
        at = (batch["starts"][:, :, None] + torch.arange(longest, device=targets.device)).flatten(0, 1)
        at = at.clamp_max(flat["input_ids"].shape[1] - 1)
        z, kept = _some_positions(model, flat, at.unique())
        found = z.gather(1, torch.searchsorted(kept, at)[:, :, None].expand(-1, -1, z.shape[-1])).view(b, c, longest, -1)
        return _sequence_scores(found, targets)

    def _check_differ(self, words: list[list[int]]) -> None:
        if len({tuple(word) for word in words}) < len(words):
            raise ValueError(f"two of the words {self._words()} are the same tokens to this tokenizer: choose words that differ")

    def class_names(self, model: nn.Module, c: int) -> list[str]:
        return [str(name) for name in self.words]

    def _words(self) -> list[str]:
        return list(self.words.values() if isinstance(self.words, dict) else self.words)

    def _prompt(self, row: dict[str, Any], tokenizer: Any) -> str:
        fields = {**row, "mask": getattr(tokenizer, "mask_token", None) or "{mask}"}
        try:
            return self.template.format_map({str(key): value for key, value in fields.items()})
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"template={self.template!r} cannot be filled ({error}); it may use {', '.join('{' + str(k) + '}' for k in fields)} "
                "and doubled braces for others"
            ) from None

    @staticmethod
    def _one_token(tokenizer: Any, before: str, word: str) -> int:
        ids = _continuation(tokenizer, before, word)
        if len(ids) != 1:
            raise ValueError(
                f"{word!r} is {len(ids)} tokens ({tokenizer.convert_ids_to_tokens(ids)}), and a mask stands for one: choose another word"
            )
        return ids[0]

    @staticmethod
    def _answers(model: nn.Module, batch: Any) -> Tensor:
        start = decoder_start(model)
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        b = len(inputs["input_ids"])
        if "targets" not in batch:
            first = torch.full((b, 1), start, device=inputs["input_ids"].device)
            return run(model, {**inputs, "decoder_input_ids": first}).logits[:, 0].gather(1, batch["word_ids"])
        targets = batch["targets"]
        _, c, longest = targets.shape
        # The text is read once; each word is answered from it.
        hidden = model.get_encoder()(**inputs).last_hidden_state.repeat_interleave(c, 0)  # type: ignore[operator]
        answers = torch.cat([torch.full_like(targets[:, :, :1], start), targets[:, :, :-1].clamp_min(0)], 2).flatten(0, 1)
        made = run(
            model, {"encoder_outputs": (hidden,), "attention_mask": inputs["attention_mask"].repeat_interleave(c, 0), "decoder_input_ids": answers}
        )
        return _sequence_scores(made.logits.view(b, c, longest, -1), targets)


class Own(Output):
    """A function (model, batch) -> (n, c) of the caller's, for any module."""

    def __init__(self, function: Any, family: str = "categorical") -> None:
        self.function = function
        self.family = family  # type: ignore[misc]

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        return self.function(model, batch)

    def facts(self) -> dict[str, Any]:
        return {"kind": "Own", "function": getattr(self.function, "__qualname__", type(self.function).__name__), "family": self.family}


# ------------------------------------------------------------------------------------------------------------------------ which one


def output_for(model: nn.Module) -> Output:
    """The prediction that a Hugging Face model was made for.

    Raises
    ------
    ValueError
        For a regression head, which predicts a number and no distribution, and for models that answer in words, where the classes have to be said.
    """
    inner = _inner(model)
    name, config = type(inner).__name__, getattr(inner, "config", None)
    problem = getattr(config, "problem_type", None)
    classifier = name.endswith(("ForSequenceClassification", "ForImageClassification", "ForTokenClassification"))
    if problem == "regression" or (classifier and getattr(config, "num_labels", 2) == 1):
        raise ValueError(
            f"{name} is a regression head ({getattr(config, 'num_labels', 1)} number, no class): a Fisher needs a distribution over at "
            "least 2 classes. Give logits=, a function (model, batch) -> (n, classes), that turns its numbers into one"
        )
    if name.endswith("ForTokenClassification"):
        return TokenClasses()
    if name.endswith("ForImageClassification"):
        return ImageClasses()
    if name.endswith("ForMaskedLM"):
        return MaskedToken()
    if is_encoder_decoder(model) and not classifier:
        return NextToken()
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return NextToken()
    return MultiLabel() if problem == "multi_label_classification" else SequenceClasses()


def is_masked(model: nn.Module) -> bool:
    """Whether it is a masked language model."""
    return type(_inner(model)).__name__.endswith("ForMaskedLM")


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether it reads a text with one half and answers with the other."""
    return bool(getattr(getattr(_inner(model), "config", None), "is_encoder_decoder", False))


def decoder_start(model: nn.Module) -> int:
    """The token with which an answer begins."""
    config = getattr(_inner(model), "config", None)
    start = getattr(config, "decoder_start_token_id", None)
    start = getattr(config, "pad_token_id", None) if start is None else start
    if start is None:
        raise ValueError(f"{type(model).__name__} does not say with which token an answer begins: set model.config.decoder_start_token_id")
    return int(start)


# ------------------------------------------------------------------------------------------------------------------------ running


PRIVATE = {"read_at", "word_ids", "targets", "starts", "words"}
"""What a batch carries for the reading of logits, not for the model."""


def run(model: nn.Module, batch: Any, **more: Any) -> Any:
    """The model's own output; without a cache of keys and values, and with positions that start at the first token that is not padding."""
    if not isinstance(batch, dict):
        return model(batch, **more)
    given = {key: value for key, value in batch.items() if key not in PRIVATE}
    accepted = _accepted(model)
    if "use_cache" in accepted:
        more["use_cache"] = False
    mask = given.get("attention_mask")
    # RoBERTa and its kin find positions by themselves, from the padding tokens.
    own = getattr(getattr(_inner(model), "config", None), "model_type", "") in {"roberta", "xlm-roberta", "camembert", "longformer", "xlm"}
    if (
        mask is not None
        and mask.ndim == 2
        and "position_ids" in accepted
        and "position_ids" not in given
        and not own
        and bool((mask[:, 0] == 0).any())
    ):
        given["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    return model(**given, **more)


def texts_as_batches(model: nn.Module, tokenizer: Any, table: pd.DataFrame, batch_size: int | None, quiet: bool = False) -> TextBatches:
    """Texts (and their pairs) as a classifier reads them."""
    texts = table["text"].tolist()
    pairs = table["text_pair"].tolist() if "text_pair" in table.columns else None
    encoded, cut = encode(model, tokenizer, texts, pairs, quiet=quiet)
    return TextBatches(tokenizer, encoded, texts, pairs, batch_size=batch_size, cut=cut)


def _inner(model: nn.Module) -> nn.Module:
    """The model itself, under adapters (PEFT) that wrap it."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if callable(unwrap) else model


def _accepted(model: nn.Module) -> set[str]:
    return set(inspect.signature(_inner(model).forward).parameters)


def _at(logits: Tensor, read_at: Tensor) -> Tensor:
    return logits[torch.arange(len(logits), device=logits.device), read_at]


def _some_positions(model: nn.Module, batch: dict[str, Tensor], kept: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (b, len(kept), V) at some positions, without making all the others where the model can be asked so."""
    if "logits_to_keep" in _accepted(model):
        return run(model, batch, logits_to_keep=kept).logits, kept
    return run(model, batch).logits[:, kept], kept


def _read(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """(b, V) at each example's own position."""
    z, kept = _some_positions(model, batch, batch["read_at"].unique())
    return _at(z, torch.searchsorted(kept, batch["read_at"]))


def _sequence_scores(logits: Tensor, targets: Tensor) -> Tensor:
    """Σ_t log p(w_t | before) over (b, c, L, V) and targets (b, c, L); −1 where a word has ended."""
    at_target = logits.gather(-1, targets.clamp_min(0)[..., None])[..., 0] - logits.logsumexp(-1)
    return torch.where(targets >= 0, at_target, 0.0).sum(-1)


def _collate_answers(tokenizer: Any, encoded: dict[str, list]) -> dict[str, Tensor]:
    """Texts for the encoder, and the words' tokens (b, c, L)."""
    texts = padded(tokenizer, {key: values for key, values in encoded.items() if key != "words"})
    return texts | {"targets": _targets(encoded["words"])}


def _collate_sequences(tokenizer: Any, encoded: dict[str, list]) -> dict[str, Tensor]:
    """Every prompt once with each word but its last token: (b, c, T), and where the reading starts."""
    words = encoded["words"]
    ids = [prompt + word[:-1] for prompt, of_one in zip(encoded["input_ids"], words, strict=True) for word in of_one]
    flat = padded(tokenizer, {"input_ids": ids, "attention_mask": [[1] * len(i) for i in ids]})
    starts = torch.tensor([[len(prompt) - 1] * len(of_one) for prompt, of_one in zip(encoded["input_ids"], words, strict=True)])
    b, c = starts.shape
    return {key: value.view(b, c, -1) for key, value in flat.items()} | {"targets": _targets(words), "starts": starts}


def _targets(words: list[list[list[int]]]) -> Tensor:
    longest = max(len(word) for of_one in words for word in of_one)
    return torch.tensor([[word + [-1] * (longest - len(word)) for word in of_one] for of_one in words])


def _continuation(tokenizer: Any, before: str, word: str) -> list[int]:
    """Tokens of a word as it stands after a text and one space, or at the beginning of all.

    By what is added to the text's own tokens: some tokenizers put a space before whatever they are given, and would count it twice.
    """
    before, word = before.rstrip(), word.strip()
    if not before:
        return _plain_ids(tokenizer, word)
    own, both = _plain_ids(tokenizer, before), _plain_ids(tokenizer, f"{before} {word}")
    if len(both) > len(own) and both[: len(own)] == own:
        return both[len(own) :]
    return _plain_ids(tokenizer, f" {word}")


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _without_end(tokenizer: Any, encoded: dict[str, list]) -> dict[str, list]:
    """Prompts without the tokens that a tokenizer puts after a text: the word comes there."""
    end = {t for t in (getattr(tokenizer, "eos_token_id", None), getattr(tokenizer, "sep_token_id", None)) if t is not None}
    out: dict[str, list] = {key: [] for key in encoded}
    for i, ids in enumerate(encoded["input_ids"]):
        stop = len(ids) - 1 if len(ids) > 1 and ids[-1] in end else len(ids)
        for key, values in encoded.items():
            out[key].append(values[i][:stop])
    return out


def _masked_batches(model: nn.Module, tokenizer: Any, texts: list[str], batch_size: int | None, quiet: bool) -> TextBatches:
    mask = getattr(tokenizer, "mask_token_id", None)
    if mask is None:
        raise ValueError(f"{type(tokenizer).__name__} has no mask token, under which a masked language model predicts")
    encoded, cut = encode(model, tokenizer, texts, quiet=quiet)
    for i, ids in enumerate(encoded["input_ids"]):
        if ids.count(mask) != 1:
            raise ValueError(
                f"row {i} has {ids.count(mask)} masks ({tokenizer.mask_token}) among the tokens that the model takes: write exactly one in "
                "each text, or {mask} in a template"
            )
    return TextBatches(tokenizer, encoded | {"read_at": [ids.index(mask) for ids in encoded["input_ids"]]}, texts, batch_size=batch_size, cut=cut)
