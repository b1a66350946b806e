"""A loaded result gets its model back: the same questions, asked of a model at hand."""

from __future__ import annotations

from typing import Any

from torch import nn

from npeff_nb.fisher import outputs
from npeff_nb.fisher.batches import ReadyBatches
from npeff_nb.fisher.factors import Recipe
from npeff_nb.fisher.outputs import Output, Own
from npeff_nb.fisher.pefs import warn_of
from npeff_nb.fisher.provenance import differences
from npeff_nb.fisher.subject import Subject, check_ready


def subject_again(result: Any, model: nn.Module, tokenizer: Any, output: Output | None, logits: Any, inputs: Any) -> Subject:
    """The subject of PEFs (or of what was made from them) with another model object.

    Warns, naming what differs, when it is not the model of the extraction to the bit.

    Raises
    ------
    ValueError, TypeError
        When the Fishers are a null, or a parameter is missing or has another shape; when the way of asking cannot be made again from what was
        saved and was not given.
    """
    check_ready(model)
    if "null" in result.facts:
        raise ValueError("these Fishers point where chance put them (nb.null_fishers): no model has them, so none can be attached")
    there = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name, shape in zip(result.parameters["name"], result.parameters["shape"], strict=True):
        if there.get(name) != tuple(shape):
            has = f"has it with shape {there[name]}" if name in there else "does not have it"
            raise ValueError(
                f"this is not the model that the Fishers were taken from ({result.facts.get('model')}): they are over {name!r} of shape "
                f"{tuple(shape)}, and the model {has}"
            )
    if inputs is None and tokenizer is None:
        raise TypeError("attach needs the model's tokenizer (or inputs= for a model without one)")
    warn_of(differences(result.facts, model, tokenizer), "these Fishers", stacklevel=4)
    asked = output or (Own(logits) if logits is not None else output_again(result.facts))
    if inputs is not None:
        batches = ReadyBatches(inputs)
        if len(batches) != len(result.examples):
            raise ValueError(f"inputs has {len(batches)} examples, the Fishers {len(result.examples)}")
    else:
        # The table was spread over positions already: its source rows are asked again, in their order.
        source = result.examples.drop_duplicates("text_row").reset_index(drop=True) if asked.spreads else result.examples
        batches, table = asked.prepare(model, tokenizer, source, None, quiet=True)  # type: ignore[assignment]
        if len(table) != len(result.examples):
            raise ValueError(
                f"with this tokenizer the texts give {len(table)} examples, not {len(result.examples)}: attach the tokenizer of the extraction"
            )
    recipe = Recipe.from_json(result.facts["recipe"]) if "recipe" in result.facts else Recipe()
    gold = result.choices["labels"] if recipe.fisher == "empirical" else None
    return Subject(model, batches, asked, recipe, tokenizer if inputs is None else None, result.choices, gold)


def output_again(facts: dict[str, Any]) -> Output:
    """The way of asking from its facts.

    Raises
    ------
    TypeError
        When it was a function of the caller's, which is not saved.
    """
    said = dict(facts.get("output", {"kind": "SequenceClasses"}))
    kind = said.pop("kind")
    if kind == "Own":
        raise TypeError(f"the logits were read by a function ({said.get('function')}), which is not saved: give it again as logits=")
    if kind not in outputs.__all__:
        raise TypeError(f"these Fishers ask for {kind!r}, which this npeff_nb does not know: update it")
    return getattr(outputs, kind)(**said)
