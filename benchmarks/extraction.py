"""Extraction: every way to have per-example gradients, against each other in one run; growth, memory, half precision."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measuring import DEVICE, RUNS, Row, device_name, exponent, in_turn, row
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.gradients import Tape
from npeff_nb.fisher.parameters import choose_parameters

BATCH, CLASSES = 32, 3
REFERENCE_ENTRIES = 65_536
"""Entries of an example's factor that the reference implementation's recipe keeps here."""


def rows() -> dict[str, Row]:
    torch.manual_seed(0)
    return extraction(tokens=32) | extraction(tokens=128) | growth() | memory() | half_precision()


def bert(classes: int = CLASSES, hidden: int = 256, layers: int = 4, attention: str = "sdpa") -> BertForSequenceClassification:
    """The model of the extraction table: BERT 4 × 256."""
    config = BertConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64, intermediate_size=4 * hidden, vocab_size=1000,
        num_labels=classes, attn_implementation=attention,
    )  # fmt: skip
    torch.manual_seed(0)
    return BertForSequenceClassification(config).eval().to(DEVICE)


def texts(n: int, tokens: int) -> dict[str, Tensor]:
    """Random tokens, no padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 1000, (n, tokens), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).logits


def sketched(model: nn.Module, inputs: dict[str, Tensor], like: Any = None, **options: Any) -> Any:
    return extract_fishers(model, inputs=inputs, logits=logits, batch_size=BATCH, features="sketch", like=like, progress=False, **options)


# ------------------------------------------------------------------------------------------------------------------------ extraction


def extraction(tokens: int) -> dict[str, Row]:
    """BERT 4 × 256, 3 classes: examples a second by every way to have per-example gradients, against each other."""
    n, few = (512, 64) if tokens <= 64 else (128, 32)
    model, frozen = bert(), bert().requires_grad_(False)
    inputs = texts(n, tokens)
    names = list(choose_parameters(model)["name"])
    weights = [model.get_parameter(name) for name in names]
    # In known coordinates: finding the principal directions happens once an extraction, not once an example.
    basis, small = sketched(model, inputs), sketched(model, inputs, budget=24 * 256, exact_norms=False)

    def batches(limit: int) -> list[dict[str, Tensor]]:
        return [{key: value[at : at + BATCH].to(DEVICE) for key, value in inputs.items()} for at in range(0, limit, BATCH)]

    def forward() -> int:
        with torch.no_grad():
            for some in batches(n):
                frozen(**some)
        return n

    def floor() -> int:
        # One forward and c − 1 backwards to the activations: nothing can be kept of a gradient for less.
        # The weights are out of autograd, as they are for us.
        for some in batches(n):
            embedded = frozen.bert.embeddings(some["input_ids"]).detach().requires_grad_()
            z = frozen(inputs_embeds=embedded, attention_mask=some["attention_mask"]).logits
            for k in range(CLASSES - 1):
                torch.autograd.grad(z[:, k].sum(), embedded, retain_graph=k < CLASSES - 2)
        return n

    def summed() -> int:
        # What a training step of c losses costs: one gradient of all weights for a whole batch, no example's own.
        for some in batches(few):
            z = model(**some).logits
            for k in range(CLASSES):
                torch.autograd.grad(z[:, k].sum(), weights, retain_graph=k < CLASSES - 1)
        return few

    def ours() -> int:
        sketched(model, inputs, basis)
        return n

    def ours_small() -> int:
        sketched(model, inputs, small, exact_norms=False)
        return n

    tape = Tape(model, names)
    one_example, two = ({k: v[[0] * count].to(DEVICE) for k, v in inputs.items()} for count in (1, 2))
    tape.learn([(lambda: logits(model, one_example), lambda: logits(model, two))])

    def dense(classes: int, keep: int) -> Callable[[], int]:
        # Rows written out, as a user of dense gradients has them; with `keep`, the reference's recipe: all c rows, then the largest entries.
        def way() -> int:
            for some in batches(few):
                with tape.recording(len(some["input_ids"])):
                    z = model(**some).logits
                v = torch.zeros(len(z), classes, CLASSES, device=DEVICE)
                v[:, range(classes), range(classes)] = 1
                rows = torch.cat([torch.stack([use.dense() for use in uses]).sum(0).flatten(2) for _, uses in tape.gradients(z, v)], 2)
                if keep:
                    rows.flatten(1).abs().topk(keep, dim=1)
            return few

        return way

    def naive() -> int:
        for i in range(8):
            log_p = model(**{key: value[i : i + 1].to(DEVICE) for key, value in inputs.items()}).logits[0].log_softmax(0)
            for y in range(CLASSES):
                torch.autograd.grad(log_p[y], weights, retain_graph=y < CLASSES - 1)
        return 8

    # vmap cannot see through masks that depend on data: attention is given none.
    eager = bert(attention="eager")
    rest = {k: v for k, v in dict(eager.named_parameters()).items() if k not in names} | dict(eager.named_buffers())
    mask = torch.zeros(1, 1, tokens, tokens, device=DEVICE)

    def one(weights: dict[str, Tensor], ids: Tensor) -> Tensor:
        call = {"input_ids": ids[None], "attention_mask": mask}
        return torch.func.functional_call(eager, weights | rest, (), call).logits[0].log_softmax(0)

    def vmap() -> int:
        own = {name: eager.get_parameter(name).detach() for name in names}
        torch.func.vmap(torch.func.jacrev(one), in_dims=(None, 0), chunk_size=8)(own, inputs["input_ids"][:16].to(DEVICE))
        return 16

    def jvp() -> int:
        tangents = tuple(torch.randn_like(w) for w in weights)
        for some in batches(few):

            def at(*moved: Tensor, some: dict[str, Tensor] = some) -> Tensor:
                # The math kernel has a forward-mode formula; the fused ones have none.
                with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                    return torch.func.functional_call(model, dict(zip(names, moved, strict=True)), (), some).logits

            torch.func.jvp(at, tuple(w.detach() for w in weights), tangents)
        return few

    rates = in_turn(
        {
            "forward": forward, "floor": floor, "summed": summed, "ours": ours, "ours 16 x 16": ours_small, "dense": dense(CLASSES - 1, 0),
            "reference recipe": dense(CLASSES, REFERENCE_ENTRIES), "loop": naive, "vmap(jacrev)": vmap, "jvp": jvp,
        },
        runs=RUNS if tokens <= 64 else 3,
    )  # fmt: skip
    what = f"BERT 4x256, {tokens} tokens, {CLASSES} classes, batches of {BATCH}, in known coordinates"
    t = f"extraction, {tokens} tokens"
    others = {
        "floor": (0.9, "a forward and c-1 backwards that keep nothing"),
        "vmap(jacrev)": (10, "torch.func.vmap(jacrev), chunks of 8"),
        "reference recipe": (20, f"c dense rows and the largest {REFERENCE_ENTRIES} entries of each example"),
        "loop": (5, "autograd.grad a class and example"),
        "dense": (None, "the same c-1 rows written out"),
    }
    found = {}
    for name, (target, said) in others.items():
        # The targets are for what every other way does too: rows, without exact norms on top; longer texts are measured.
        target = target if tokens == 32 else None
        found[f"{t}: sketch 16 x 16 / {name}"] = row(
            rates["ours 16 x 16"] / rates[name], target, f"{what}: sketch of 16 x 16 a matrix against {said}"
        )
        found[f"{t}: sketch and exact norms / {name}"] = row(rates["ours"] / rates[name], None, f"{what}: as it comes, against {said}")
    found[f"{t}: floor / vmap(jacrev)"] = row(rates["floor"] / rates["vmap(jacrev)"], None, f"{what}: what any way by backwards can reach at most")
    for name, rate in rates.items():
        found[f"{t}: {name}, examples a second"] = row(rate, None, f"BERT 4x256, {tokens} tokens: {name}, on {device_name()}")
    if DEVICE == "cuda":
        flop = 2.0 * sum(w.numel() for w in weights) * tokens * (1 + 2 * (CLASSES - 1) + 1)
        found[f"{t}: TFLOP/s"] = row(rates["ours"] * flop / 1e12, None, "floating-point operations of the passes alone")
    return found


def growth() -> dict[str, Row]:
    """How time grows: the exponent b of time ~ size^b over a factor of four; below or at 1 is linear."""
    model = bert(hidden=128, layers=2)
    some = texts(256, 32)
    like = sketched(model, some)

    def way(make: Callable[[], Any], count: int) -> Callable[[], int]:
        def run() -> int:
            make()
            return count

        return run

    def many(n: int) -> Callable[[], int]:
        inputs = texts(n, 32)
        return way(lambda: sketched(model, inputs, like), 1)

    def long(tokens: int) -> Callable[[], int]:
        inputs = texts(128, tokens)
        return way(lambda: sketched(model, inputs, like), 1)

    def classes(c: int) -> Callable[[], int]:
        wide = bert(classes=c, hidden=128, layers=2)
        of_classes = sketched(wide, texts(64, 32))
        return way(lambda: sketched(wide, texts(128, 32), of_classes), 1)

    def parameters(layers: int) -> Callable[[], int]:
        deep = bert(hidden=128, layers=layers)
        of_layers = sketched(deep, texts(64, 32))
        return way(lambda: sketched(deep, texts(128, 32), of_layers), 1)

    found = {}
    pairs = {
        "n, 512 to 2 048 examples": (many(512), many(2048)),
        "tokens, 32 to 128": (long(32), long(128)),
        "classes, 3 to 12": (classes(3), classes(12)),
        "parameters, 2 to 8 layers": (parameters(2), parameters(8)),
    }
    for name, (low, high) in pairs.items():
        rates = in_turn({"low": low, "high": high}, runs=3)
        found[f"growth with {name}"] = row(
            exponent(rates), None, "exponent of time ~ size^b (1 is linear), BERT 128 wide, sketch in known coordinates"
        )
    return found


def memory() -> dict[str, Row]:
    """Python's own memory at its peak for four times the examples, stored on disk: flat is 1."""
    model = bert(hidden=64, layers=1)
    like = sketched(model, texts(256, 8))

    def peak(n: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            tracemalloc.start()
            sketched(model, texts(n, 8), like, cache=folder)
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        # Inputs, norms and tables have a row an example whatever is done: only what comes on top is the extraction's.
        return found - 8 * n * 8 * 2

    return {
        "memory, 1 024 to 4 096 examples on disk": row(
            peak(4096) / peak(1024), None, "peak of numpy and Python memory, four times the examples; 1 is flat"
        )
    }


def half_precision() -> dict[str, Row]:
    """A bfloat16 model: speed against float32, and how far its Fishers are from float32's (relative, median example)."""
    model, half = bert(), bert().to(torch.bfloat16)
    inputs = texts(128, 32)
    like = sketched(model, inputs)
    full, rough = sketched(model, inputs, like), sketched(half, inputs, like)

    def fishers(pefs: Any) -> np.ndarray:
        return np.einsum("nkd,nke->nde", pefs.factors, pefs.factors)

    exact = fishers(full)
    error = float(np.median(np.linalg.norm(fishers(rough) - exact, axis=(1, 2)) / np.linalg.norm(exact, axis=(1, 2))))
    rates = in_turn({"float32": lambda: len(sketched(model, inputs, like)), "bfloat16": lambda: len(sketched(half, inputs, like))}, runs=3)
    return {
        "bfloat16 / float32": row(
            rates["bfloat16"] / rates["float32"], None, f"examples a second of a bfloat16 model against float32, on {device_name()}"
        ),
        "bfloat16 error": row(error, None, "median relative error of a bfloat16 model's Fishers, in Frobenius norm"),
    }
