"""``npeff-nb``: the main job from a shell."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

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
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    asked = ask.parse_args(argv)
    try:
        return _demo(asked)
    except KeyboardInterrupt:
        print("interrupted; files that were complete are kept, nothing is half-written", file=sys.stderr)
        return 130
    except (ImportError, OSError, ValueError) as error:
        print(f"npeff-nb: {error}", file=sys.stderr)
        return 1


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
        f"\nOpen   {asked.output / 'report.html'}   (any browser, offline)\nTable  {asked.output / 'components.csv'}"
    )
    return 0


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
