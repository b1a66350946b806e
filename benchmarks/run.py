"""Speed as ratios within one run, written to ``benchmarks/results.json``.

    make bench

Each row compares two ways to the same result on the same inputs in the same process, in turn, and keeps the ratio of their medians: absolute times
say more about the machine than about the code.  Row: {"value": ratio, "target": the least that we want, "command": what was compared}.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

from npeff_nb.decomposition import solvers
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.parameters import choose_parameters

RESULTS = Path(__file__).parent / "results.json"
EXAMPLES, BATCH, TOKENS, CLASSES, RUNS = 128, 32, 32, 3, 5


def main() -> None:
    """Runs all rows and writes them."""
    torch.manual_seed(0)
    rows = extraction() | coefficients()
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
    width = max(map(len, rows))
    for name, row in rows.items():
        verdict = "reached" if row["value"] >= row["target"] else "missed"
        print(f"{name:<{width}}  {row['value']:8.2f} ×   target {row['target']:g} × {verdict}   {row['command']}")
    print(f"written to {RESULTS}")


def extraction() -> dict[str, dict]:
    """BERT 4 × 256, 32 tokens, 3 classes: examples a second with a sketch against the other ways to have per-example gradients."""
    config = BertConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024, vocab_size=1000, num_labels=CLASSES)
    model = BertForSequenceClassification(config).eval()
    inputs = {"input_ids": torch.randint(1, 1000, (EXAMPLES, TOKENS)), "attention_mask": torch.ones(EXAMPLES, TOKENS, dtype=torch.long)}
    names = list(choose_parameters(model)["name"])
    chosen = {name: model.get_parameter(name) for name in names}

    def logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**batch).logits

    basis = extract_fishers(model, inputs=inputs, logits=logits, batch_size=BATCH, features="sketch", progress=False)

    frozen = BertForSequenceClassification(config).eval().requires_grad_(False)

    def ours() -> None:
        # In known coordinates: finding the principal directions happens once an extraction, not once an example.
        extract_fishers(model, inputs=inputs, logits=logits, batch_size=BATCH, like=basis, progress=False)

    def floor() -> None:
        # One forward and c − 1 backwards to the activations: nothing can be kept of a gradient for less.
        # The weights are out of autograd, as they are for us.
        for at in range(0, EXAMPLES, BATCH):
            some = {key: value[at : at + BATCH] for key, value in inputs.items()}
            embedded = frozen.bert.embeddings(some["input_ids"]).detach().requires_grad_()
            z = frozen(inputs_embeds=embedded, attention_mask=some["attention_mask"]).logits
            for k in range(CLASSES - 1):
                torch.autograd.grad(z[:, k].sum(), embedded, retain_graph=k < CLASSES - 2)

    def naive() -> None:
        for i in range(EXAMPLES):
            log_p = model(**{key: value[i : i + 1] for key, value in inputs.items()}).logits[0].log_softmax(0)
            for y in range(CLASSES):
                torch.autograd.grad(log_p[y], list(chosen.values()), retain_graph=y < CLASSES - 1)

    # vmap cannot see through masks that depend on data: attention is given none.
    eager = BertForSequenceClassification._from_config(config, attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    rest = {k: v for k, v in dict(eager.named_parameters()).items() if k not in chosen} | dict(eager.named_buffers())
    mask = torch.zeros(1, 1, TOKENS, TOKENS)

    def one(weights: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        call = {"input_ids": ids[None], "attention_mask": mask}
        return torch.func.functional_call(eager, weights | rest, (), call).logits[0].log_softmax(0)

    def vmap() -> None:
        weights = {name: eager.get_parameter(name).detach() for name in names}
        torch.func.vmap(torch.func.jacrev(one), in_dims=(None, 0), chunk_size=8)(weights, inputs["input_ids"])

    times = in_turn({"ours": ours, "floor": floor, "naive": naive, "vmap": vmap})
    what = f"BERT 4x256, {TOKENS} tokens, {CLASSES} classes, batches of {BATCH}: sketch in known coordinates against"
    return {
        "extraction / floor": row(times["floor"] / times["ours"], 0.9, f"{what} a forward and c-1 backwards that keep nothing"),
        "extraction / vmap(jacrev)": row(times["vmap"] / times["ours"], 10, f"{what} torch.func.vmap(jacrev), chunks of 8"),
        "extraction / loop": row(times["naive"] / times["ours"], 5, f"{what} autograd.grad a class and example"),
    }


def coefficients() -> dict[str, dict]:
    """Coefficients of 2 000 new examples for 64 components: coordinate descent against multiplicative updates."""
    rng = np.random.default_rng(0)
    H = rng.normal(size=(64, 200))
    H = torch.from_numpy(H / np.linalg.norm(H, axis=1, keepdims=True))
    A = torch.from_numpy(rng.normal(size=(2000, 2, 200)) / 20) + H[rng.integers(64, size=(2000, 2))]
    A = A / (A @ A.transpose(1, 2)).square().sum((1, 2)).sqrt().sqrt()[:, None, None]
    B, G = (A @ H.T).square().sum(1), (H @ H.T).square()

    def ours() -> torch.Tensor:
        return solvers.fit_coefficients(B, G, tol=1e-5)

    def multiplicative() -> None:
        W = torch.rand(B.shape, dtype=B.dtype)
        for _ in range(2000):
            W *= B / (W @ G + 1e-9)

    W = ours()
    residual = float(torch.minimum(W, W @ G - B).abs().max())
    times = in_turn({"ours": ours, "multiplicative": multiplicative}, runs=3)
    what = f"2 000 examples, 64 components: coordinate descent (KKT residual {residual:.0e}) against 2 000 multiplicative updates"
    return {"transform / multiplicative": row(times["multiplicative"] / times["ours"], 30, what)}


def in_turn(ways: dict[str, Callable[[], object]], runs: int = RUNS) -> dict[str, float]:
    """Median seconds of each way, measured in turn after one warm-up, so that a slow moment of the machine meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(runs + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def row(value: float, target: float, command: str) -> dict[str, object]:
    return {"value": round(value, 3), "target": target, "command": f"make bench: {command}"}


if __name__ == "__main__":
    main()
