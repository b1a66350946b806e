"""``npeff-nb``: the main job from a shell."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from npeff_nb import __version__


def main(argv: list[str] | None = None) -> int:
    """Entry of the command; returns the exit status: 0 done, 1 failed with one line that says why, 130 interrupted."""
    ask = argparse.ArgumentParser(prog="npeff-nb", description="See which strategies a neural network uses.")
    ask.add_argument("--version", action="version", version=__version__)
    commands = ask.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="decompose the embedded model and write a report",
        description="Decomposes MiniLM-L6 fine-tuned on the six TREC question types and writes report.html, components.csv, "
        "decomposition.npeff/ and summary.json.",
    )
    demo.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    demo.add_argument("--examples", type=_positive, default=None, metavar="N", help="questions to use (default: 2000)")
    demo.add_argument("--components", type=_positive, default=None, metavar="R", help="components to find (default: 32)")
    demo.add_argument("--seed", type=int, default=0, help="of the sample and the starts (default: 0)")
    demo.add_argument("--cache", type=Path, default=None, metavar="DIR", help="keep the Fishers here for the next run")
    demo.add_argument("--check", action="store_true", help=CHECK)
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    demo.set_defaults(run=_demo)
    _extract_arguments(commands)
    _fit_arguments(commands)
    asked = ask.parse_args(argv)
    try:
        return asked.run(asked)
    except KeyboardInterrupt:
        print("interrupted; files that were complete are kept, nothing is half-written", file=sys.stderr)
        return 130
    except (ArithmeticError, ImportError, MemoryError, NotImplementedError, OSError, TypeError, ValueError) as error:
        print(f"npeff-nb: {error}", file=sys.stderr)
        return 1


def _extract_arguments(commands: Any) -> None:
    extract = commands.add_parser(
        "extract",
        help="per-example Fishers of a model on your own texts",
        description="Extracts per-example Fishers into a folder that nb.load opens. A run that was stopped goes on where it was. "
        "Several processes share the work: torchrun --nproc-per-node 2 -m npeff_nb extract ...",
    )
    say = extract.add_argument
    say("--model", required=True, metavar="NAME", help="folder of a Hugging Face model, or a name in the local cache")
    say(
        "--examples",
        type=Path,
        required=True,
        metavar="FILE",
        help="texts: .csv, .tsv, .jsonl, .json, .parquet with a column 'text', or .txt by line",
    )
    say("--output", type=Path, required=True, metavar="DIR", help="folder for the Fishers")
    say("--task", choices=TASKS, help="what the model is asked (default: what it was made for)")
    say("--words", nargs="+", metavar="WORD", help="label words of a language model: the classes")
    say("--template", default="{text}", metavar="PROMPT", help="prompt for label words, with {text} in its place (default: the text alone)")
    say("--fisher", choices=("true", "empirical", "predicted"), default="true", help="which Fisher (default: true)")
    say("--classes", default="auto", metavar="K", help="auto, all, how many of the likeliest, or the least probability (default: auto)")
    say("--features", choices=FEATURES, default="auto", help="where gradients are kept (default: auto)")
    say("--budget", type=_positive, metavar="N", help="width of the sketch, landmark rows, or entries an example")
    say("--parameters", default="default", metavar="WHICH", help="default, all, a kind, a pattern, layers 2-5; joined by &")
    say("--diagonal", type=int, nargs="?", const=True, default=False, metavar="K", help="also the diagonal Fisher; K: each example's largest entries")
    say("--batch-size", type=_positive, metavar="N", help="examples a batch (default: by tokens)")
    say("--on-nan", choices=("raise", "mask"), default="raise", help="an example whose numbers are not finite (default: raise)")
    say("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the model (default: float32)")
    say("--device", metavar="DEVICE", help="where the model runs (default: a GPU if there is one)")
    say("--seed", type=int, default=0, help="of the sketch (default: 0)")
    say("--quiet", action="store_true", help="no progress bar")
    extract.set_defaults(run=_extract)


def _fit_arguments(commands: Any) -> None:
    fit = commands.add_parser(
        "fit",
        help="components of Fishers that were extracted",
        description="Factors per-example Fishers into components; writes a folder that nb.load opens and, with --table, a table of the components. "
        "Several processes share the examples: torchrun --nproc-per-node 2 -m npeff_nb fit ...",
    )
    say = fit.add_argument
    say("fishers", type=Path, metavar="FISHERS", help="folder that npeff-nb extract (or .save) wrote")
    say("--output", type=Path, required=True, metavar="DIR", help="folder for the decomposition")
    say("--components", type=_positive, default=32, metavar="R", help="components to find (default: 32)")
    say("--solver", choices=SOLVERS, default="hals", help="how (default: hals); minibatch for millions of examples")
    say("--starts", type=_positive, default=4, metavar="N", help="starts, of which the best is kept (default: 4)")
    say("--tol", type=float, default=1e-5, metavar="SHARE", help="ends when an iteration lowers the loss by less (default: 1e-5)")
    say("--max-iter", type=_positive, default=500, metavar="N", help="iterations of a start at most (default: 500)")
    say("--device", metavar="DEVICE", help="where to compute (default: the processor)")
    say("--seed", type=int, default=0, help="of the starts (default: 0)")
    say("--check", action="store_true", help=CHECK)
    say("--table", type=Path, metavar="FILE", help="also a CSV file with one row a component")
    say("--quiet", action="store_true", help="no plan and no progress")
    fit.set_defaults(run=_fit)


CHECK = "also say how surely components come back with five other seeds, and what chance explains"
SOLVERS = ("hals", "minibatch", "multiplicative", "stiefel")
FEATURES = ("auto", "dense", "reduced", "sketch", "topk", "gram")
TASKS = ("sequence-classes", "multi-label", "token-classes", "image-classes", "next-token", "every-token", "masked-token", "label-words")


def _demo(asked: argparse.Namespace) -> int:
    import warnings

    from npeff_nb.demo import run

    # A library's notice about its own next version; nothing the person could do about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    summary = run.run_demo(
        asked.output,
        n_examples=asked.examples or run.EXAMPLES,
        n_components=asked.components or run.COMPONENTS,
        random_state=asked.seed,
        progress=not asked.quiet,
        cache=asked.cache,
        check=asked.check,
        tell=lambda line: print(f"… {line}", flush=True),
    )
    _print_table(asked.output / "components.csv")
    fine, edit = summary["fine_labels"], summary["edit"]
    r, ratio, control = summary["n_components"], edit["median_kl_ratio"]["-"], edit["median_kl_ratio_random"]["-"]
    print(
        f"\n{summary['n_examples']} questions, {r} components, {summary['explained_variance']:.0%} of the Fishers explained.\n"
        f"Top examples of a component share one of 50 fine labels, which the model never saw, to {fine['mean_purity']:.0%} "
        f"(expected from the coarse label: {fine['mean_expected_from_coarse']:.0%});\n"
        f"{fine['components_purer_than_expected']} of {r} are purer than expected, {fine['components_purer_beyond_chance']} of them "
        f"beyond chance (p < {fine['chance_level']}).\n"
        f"Turned down by {edit['strength']:g}, a component changes its own examples {ratio:.1f} times as much as others "
        f"(median KL ratio; a random direction: {control:.3f}).\n"
        f"{_said_of(summary) if asked.check else ''}"
        f"\nOpen   {asked.output / 'report.html'}   (any browser, offline)\nTable  {asked.output / 'components.csv'}"
    )
    return 0


def _extract(asked: argparse.Namespace) -> int:
    import os
    import warnings

    from npeff_nb.fisher.workers import launched

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    table = _read_table(asked.examples)
    classes = _number(asked.classes)
    output = _output(asked)
    with launched() as workers:
        import torch
        import transformers

        from npeff_nb.fisher.extract import extract_fishers

        local = int(os.environ.get("LOCAL_RANK", "0"))
        device = asked.device or (f"cuda:{local % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu")
        transformers.logging.disable_progress_bar()
        tokenizer = transformers.AutoTokenizer.from_pretrained(asked.model)
        model = _model(transformers, asked.model, getattr(torch, asked.dtype)).eval().to(device)
        # Beside the result, so that the last step is a rename and what was done outlives a kill.
        work = asked.output.with_name(f".{asked.output.name}.work")
        pefs = extract_fishers(
            model, tokenizer, table, output=output, fisher=asked.fisher, classes=classes, features=asked.features, budget=asked.budget,
            parameters=asked.parameters, diagonal=asked.diagonal, batch_size=asked.batch_size, progress=not asked.quiet, cache=work,
            on_nan=asked.on_nan, seed=asked.seed,
        )  # fmt: skip
        if not workers.leads:
            return 0
        pefs.save(asked.output)
        shutil.rmtree(work, ignore_errors=True)
    print(repr(pefs))
    print(pefs.facts["features_why"] if asked.features == "auto" else f"features: {asked.features}")
    print(pefs.parameter_energy().head(12).round({"share": 4}).to_string(index=False))
    means = {name: pefs.columns[name].mean() for name in pefs.columns if name != "masked"} if pefs.columns is not None else {}
    print("; ".join(f"mean {name} {value:.3f}" for name, value in means.items()))
    print(f"\nOpen   nb.load({str(asked.output)!r})")
    return 0


def _fit(asked: argparse.Namespace) -> int:
    from npeff_nb import _files
    from npeff_nb._load import load
    from npeff_nb.fisher.pefs import PEFs

    pefs = load(asked.fishers)
    if not isinstance(pefs, PEFs):
        raise ValueError(f"{asked.fishers} holds no Fishers: give the folder that npeff-nb extract wrote")
    from npeff_nb.fisher.workers import launched
    from npeff_nb.npeff import NPEFF

    with launched() as workers:
        shared = workers.number > 1
        npeff = NPEFF(
            asked.components, solver=asked.solver, n_init=asked.starts, tol=asked.tol, max_iter=asked.max_iter, device=asked.device,
            shards="rows" if shared else None, verbose=not asked.quiet and workers.leads, random_state=asked.seed,
        )  # fmt: skip
        # Every process its own stretch of examples; the first then gives all of them their coefficients.
        ends = [len(pefs) * i // workers.number for i in range(workers.number + 1)]
        npeff.fit(pefs[slice(ends[workers.rank], ends[workers.rank + 1])] if shared else pefs)
        if not workers.leads:
            return 0
        npeff = npeff.applied_to(pefs) if shared else npeff
    npeff.save(asked.output)
    if asked.table is not None:
        _files.write_text(asked.table, npeff.component_table().to_csv(index=False))
    print(
        f"{len(npeff.components_)} components explain {npeff.explained_variance_:.1%} of {len(pefs)} Fishers "
        f"({npeff.n_iter_} iterations, {'converged' if npeff.converged_ else 'not converged: raise --max-iter'})"
    )
    if len(npeff.dead_components_):
        print(f"no example uses components {', '.join(map(str, npeff.dead_components_))}: ask for fewer")
    if asked.check:
        from npeff_nb.decomposition.checks import checks

        print(
            _said_of({"explained_variance": npeff.explained_variance_} | checks(npeff, pefs, random_state=asked.seed + 1, progress=not asked.quiet))
        )
    print(f"\nOpen   nb.load({str(asked.output)!r})")
    return 0


def _said_of(found: dict[str, Any]) -> str:
    """The checks in words."""
    stability, duplicates = found["stability"], found["near_duplicates"]
    lines = [
        f"With {stability['seeds']} other seeds {stability['components_that_come_back']} of {len(stability['of_each'])} components come back "
        f"(agreement of 0.8 or more; median {stability['median']:.2f}).",
        f"Of Fishers alike in spectrum and on average, with directions drawn at random, as many components explain "
        f"{found['explained_by_chance']:.1%} (of the real ones {found['explained_variance']:.1%}).",
    ]
    if duplicates:
        lines.append(f"Nearly the same direction: {', '.join(f'{a} and {b}' for a, b in duplicates)}.")
    return "\n".join(lines) + "\n"


def _model(transformers: Any, name: str, dtype: Any) -> Any:
    """The model in the class that its configuration names, so that the head is the one it was saved with."""
    config = transformers.AutoConfig.from_pretrained(name)
    kinds = [getattr(transformers, kind, None) for kind in config.architectures or []]
    if not kinds or kinds[0] is None:
        raise ValueError(
            f"{name} does not say what kind of model it is (architectures in its config.json): load it in Python and call nb.extract_fishers"
        )
    return kinds[0].from_pretrained(name, dtype=dtype)


def _output(asked: argparse.Namespace) -> Any:
    if asked.words is not None and asked.task not in {None, "label-words"}:
        raise ValueError(f"--words are the classes of --task label-words, not of {asked.task}")
    if asked.task == "label-words" and asked.words is None:
        raise ValueError("--task label-words needs --words")
    if asked.task is None and asked.words is None:
        return None
    from npeff_nb.fisher import outputs

    kinds = {
        "sequence-classes": outputs.SequenceClasses, "multi-label": outputs.MultiLabel, "token-classes": outputs.TokenClasses,
        "image-classes": outputs.ImageClasses, "next-token": outputs.NextToken, "masked-token": outputs.MaskedToken,
    }  # fmt: skip
    if asked.words is not None:
        return outputs.LabelWords(tuple(asked.words), asked.template)
    return outputs.NextToken("every") if asked.task == "every-token" else kinds[asked.task]()


def _number(text: str) -> str | float:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text


def _read_table(path: Path) -> Any:
    import pandas as pd

    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    kind = path.suffix.lower()
    if kind == ".txt":
        return pd.DataFrame({"text": [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]})
    readers: dict[str, Any] = {
        ".csv": pd.read_csv,
        ".tsv": lambda p: pd.read_csv(p, sep="\t"),
        ".jsonl": lambda p: pd.read_json(p, lines=True),
        ".json": pd.read_json,
        ".parquet": pd.read_parquet,
    }
    if kind not in readers:
        raise ValueError(f"{path}: tables are read from {', '.join(readers)} and .txt")
    return readers[kind](path)


def _print_table(path: Path) -> None:
    import pandas as pd

    table = pd.read_csv(path)
    shown = table[
        ["component", "name", "share", "examples", "label", "fine_label", "fine_label purity", "fine_label expected", "kl_ratio −", "example"]
    ]
    shown = shown.rename(columns={"fine_label": "fine label", "fine_label purity": "purity", "fine_label expected": "expected"})
    with pd.option_context("display.width", 220, "display.max_columns", None, "display.max_rows", None, "display.max_colwidth", 48):
        print(shown.round({"share": 3, "purity": 2, "expected": 2, "kl_ratio −": 1}).to_string(index=False))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


if __name__ == "__main__":
    sys.exit(main())
