"""Speed as ratios within one run, written to ``benchmarks/results.json``.

    make bench

Each row compares two ways to the same result on the same inputs in the same process, in turn, and keeps the ratio of their medians: absolute times
say more about the machine than about the code.  Row: {"value": ratio, "target": the least that we want, "command": what was compared}; rows without a
target are measurements.  ``python benchmarks/run.py decomposition`` measures one part again and leaves the others' rows as they are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import decomposition
import diagonal
import edits
import extraction
from measuring import device_name

RESULTS = Path(__file__).parent / "results.json"
PARTS = {"extraction": extraction.rows, "decomposition": decomposition.rows, "diagonal": diagonal.rows, "edits": edits.rows}


def main(asked: list[str]) -> None:
    """Runs the parts that are asked for, all by default, and writes their rows as they come."""
    unknown = sorted(set(asked) - set(PARTS))
    if unknown:
        sys.exit(f"benchmarks/run.py: {', '.join(unknown)} is no part of it; it has {', '.join(PARTS)}")
    known = json.loads(RESULTS.read_text()) if asked and RESULTS.exists() else {}
    for part in asked or PARTS:
        found = PARTS[part]()
        known |= found
        RESULTS.write_text(json.dumps(known, indent=2) + "\n")
        width = max(map(len, found))
        for name, row in found.items():
            verdict = "" if "target" not in row else f"target {row['target']:.3g} × " + ("reached" if row["value"] >= row["target"] else "missed")
            print(f"{name:<{width}}  {row['value']:8.3g}   {verdict:<24} {row['command']}", flush=True)
    print(f"written to {RESULTS}; device: {device_name()}")


if __name__ == "__main__":
    main(sys.argv[1:])
