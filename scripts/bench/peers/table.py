"""The results of the peers' files as one Markdown table: ``python table.py control.json ... > table.md``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
HEADER = [
    "",
    "setting",
    "1. ranks apart",
    "2. stops after which the end is equal",
    "3. frozen tensors that moved",
]
NOTE = """\
Bold is a proof that fails. All train test_resnet without weights for 6 epochs of 3 steps, with batch norm, dropout,
accumulation, momentum and weight decay. Epochs count from 0; numbers in parentheses are stops.

1. Two processes over gloo, on different batches: the largest difference of a parameter between them at the ends of the
   epochs. The result is the same with find_unused_parameters=False and True where one is shown.
2. Stopped after each optimizer step and at each end of an epoch, and gone on with in the documented ways: weights,
   buffers and optimizer at the end, bitwise. The order of the pictures and the dropout are functions of the epoch and
   the batch, so that only the schedule can differ; the control shows that the rest does not.
3. Parameters and buffers of what the schedule says is frozen, bitwise, over each phase; with an EMA also in the average
   that is validated. Lightning's EMA rounds what does not change; "an exact EMA" leaves the schedule's faults alone.

Lightning's BackboneFinetuning has two phases and leaves the batch norms of a frozen backbone in training mode whatever
train_bn says. finetuning-scheduler cannot freeze again what has thawed.
"""


def apart(row: Row) -> str:
    if not row["apart"]:
        return "0"
    first = next(i for i, epoch in enumerate(row["epochs"]) if max(epoch["learning"], epoch["frozen"]) > 0)
    return f"{row['apart']:.2g}, from epoch {first} on"


def resumed(row: Row) -> str:
    wrong = {what: stops for what, stops in row["outcomes"].items() if what != "equal"}
    said = [f"{what} ({len(stops)})" for what, stops in wrong.items()]
    return "; ".join([f"{row['equal']} of {row['stops']}", *said])


def moved(row: Row) -> str:
    """The sorts of tensors that moved, with how many of how many; each once, where both learning and scored did."""
    if not any(row["frozen"].values()):
        return "nothing is frozen"
    most = {sort: max(kinds[sort] for kinds in row["moved"].values()) for sort in row["frozen"]}
    return ", ".join(f"{n} of {row['frozen'][sort]} {sort}" for sort, n in most.items() if n) or "none"


SAID = {"ranks": apart, "resume": resumed, "frozen": moved}


def result(row: Row) -> str:
    said = str(row["error"]) if "error" in row else SAID[row["proof"]](row)
    said = said.replace("|", "\\|").replace("\n", " ")
    return said if row["holds"] else f"**{said}**"


def cell(rows: Sequence[Row]) -> str:
    """One result where all ways agree, else each with its way."""
    results = {row["how"]: result(row) for row in rows}
    if len(set(results.values())) <= 1:
        return next(iter(results.values()), "")
    return "<br>".join(f"{how}: {said}" for how, said in results.items())


def lines(found: Mapping[str, Any]) -> Iterable[list[str]]:
    for setting in dict.fromkeys(row["setting"] for row in found["rows"]):
        own = [row for row in found["rows"] if row["setting"] == setting]
        yield [found["name"], setting, *(cell([row for row in own if row["proof"] == proof]) for proof in SAID)]


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Rows are peers and their settings, columns are the proofs."""
    rows = [HEADER, ["---"] * len(HEADER), *(line for found in results for line in lines(found))]
    versions = {name: version for found in results for name, version in found["versions"].items()}
    shown = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return "\n".join([*("| " + " | ".join(row) + " |" for row in rows), "", NOTE, f"With {shown}."])


if __name__ == "__main__":
    print(table([json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]]))
