"""Time and memory of crocodil against the plain way of doing the same, as ratios.

    make bench                          all of them, minutes
    make bench ARGS="P2 P5 --quick"     some of them, smaller
    make bench ARGS="--official ~/LLaDA/generate.py"

docs/benchmarks.md says what each row is. The table goes to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, from anywhere

from crocodil.errors import CrocodilError
from recipes.benchmarks import (
    checkpoint_io,
    demask_step,
    encode_throughput,
    latent_share,
    masked_loss,
    packing,
    register_cache,
    scaling,
    stages,
    text_from_noise,
    token_draw,
    training_step,
)
from recipes.benchmarks.anchor import open_anchor
from recipes.benchmarks.harness import (
    CONTROL_TOLERANCE,
    Bench,
    Benchmark,
    Row,
    Skipped,
    Unequal,
    calibrate,
    machine,
)
from recipes.benchmarks.sizes import FULL, QUICK

BENCHMARKS = {
    module.BENCHMARK.id: module.BENCHMARK
    for module in (
        demask_step,
        token_draw,
        text_from_noise,
        latent_share,
        masked_loss,
        training_step,
        packing,
        encode_throughput,
        register_cache,
        scaling,
        checkpoint_io,
        stages,
    )
}
STYLES = {"aim": "green", "floor": "green", "below": "red", "void": "yellow", "no target": "dim"}


def measure(benchmarks: Sequence[Benchmark], bench: Bench, log: Console) -> dict[str, Any]:
    """Calibrate, then run them one after another; the whole as one JSON-able document."""
    about = machine(bench.device)
    log.print(f"{about['device']}, {about['threads']} threads, torch {about['torch']}")
    load = about["load_average"]
    if load is not None and bench.device.type == "cpu" and load[0] > 0.5:
        log.print(
            f"[yellow]others are at work here (load {load[0]:.1f}); rows whose A/A control shows it are void"
        )
    calibration = calibrate(bench)
    log.print(", ".join(f"{name} {rate:.1f}" for name, rate in calibration.items()))
    return {
        "format": 1,
        "sizes": bench.sizes.name,
        "pairs": bench.sizes.pairs,
        "control_tolerance": CONTROL_TOLERANCE,
        "step_anchor": bench.anchor.name,
        "machine": about,
        "calibration": calibration,
        "benchmarks": [_one(benchmark, bench, log) for benchmark in benchmarks],
    }


def _one(benchmark: Benchmark, bench: Bench, log: Console) -> dict[str, Any]:
    """A benchmark that fails says so and does not stop the others."""
    log.print(f"[bold]{benchmark.id}[/] {benchmark.title}")
    rows: list[Row] = []
    skipped: list[Skipped] = []
    error = None
    start = time.perf_counter()
    try:
        for row in benchmark.measure(bench):
            if isinstance(row, Skipped):
                skipped.append(row)
                log.print(f"  {row.name}: not measured, {row.reason}", markup=False, highlight=False)
                continue
            rows.append(row)
            log.print(
                f"  {row.name} ({row.measure}): {row.value:.2f}, A/A {row.control:.2f}", highlight=False
            )
    except Unequal as unequal:
        error = f"not equal, so not timed: {unequal}"
    except Exception as failure:  # whatever it is, the rows of the others are worth having
        error = f"{type(failure).__name__}: {failure}"
        log.print(traceback.format_exc(), markup=False, highlight=False)
    if error:
        log.print(f"  {error}", style="red", markup=False)
    return {
        "id": benchmark.id,
        "title": benchmark.title,
        "anchor": benchmark.anchor,
        "equality": benchmark.equality,
        "error": error,
        "seconds": time.perf_counter() - start,
        "rows": [document_of(row) for row in rows],
        "skipped": [asdict(row) for row in skipped],
    }


def document_of(row: Row) -> dict[str, Any]:
    """A row as it stands in the JSON."""
    return {**{name: getattr(row, name) for name in Row.__dataclass_fields__}, "verdict": row.verdict}


def table_of(document: dict[str, Any]) -> Table:
    """The rows of a document, for reading."""
    table = Table(
        title=f"crocodil against the plain way, {document['sizes']} sizes\nP1 and P2 against {document['step_anchor']}"
    )
    table.add_column("")
    table.add_column("what", overflow="fold")
    table.add_column("measure")
    for name in ("median", "range", "A/A", "ideal", "target"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for benchmark in document["benchmarks"]:
        table.add_section()
        table.add_row(f"[bold]{benchmark['id']}", f"[bold]{benchmark['title']}[/]: {benchmark['anchor']}")
        for row in benchmark["rows"]:
            times = "×" if row["measure"] in ("time", "peak memory") else ""
            targets = [f"{target:.4g}" for target in (row["floor"], row["aim"]) if target is not None]
            table.add_row(
                "",
                row["name"],
                row["measure"],
                f"{row['value']:.2f}{times}",
                f"{row['low']:.2f} – {row['high']:.2f}",
                f"{row['control']:.2f}",
                "" if row["ideal"] is None else f"{row['ideal']:.2f}",
                ("≤ " if row["at_most"] else "≥ ") + ", ".join(targets) if targets else "",
                f"[{STYLES[row['verdict']]}]{row['verdict']}",
            )
        for row in benchmark["skipped"]:
            table.add_row("", Text(f"{row['name']}: not measured, {row['reason']}", style="dim"))
        if benchmark["error"]:
            table.add_row("", Text(benchmark["error"], style="red"))
    table.caption = (
        "time and peak memory: theirs divided by ours, above 1 ours is better; exponent, time / positions and "
        "evaluations: smaller is better. target: floor, aim. void: one side usually differs from itself by more than "
        f"{document['control_tolerance']:.0%}."
    )
    return table


def bench_of(quick: bool, device: str, official: str | None) -> Bench:
    """Refuse what cannot be measured here."""
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise CrocodilError(f"--device {device}: torch knows no such device; give cpu or cuda") from None
    if wanted.type not in ("cpu", "cuda"):
        raise CrocodilError(f"--device {device}: the benchmarks run on cpu and cuda")
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise CrocodilError("--device cuda: torch sees no GPU here; leave it out for the CPU")
    return Bench(QUICK if quick else FULL, wanted, open_anchor(official))


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all were measured, 1 when one could not be or its two sides are not equal, 2 for bad usage."""
    parser = argparse.ArgumentParser(
        prog="run.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which ones, of {' '.join(BENCHMARKS)}; all if left out"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every measurement there, as one document"
    )
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer rows")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda; changes nothing else")
    parser.add_argument(
        "--official",
        metavar="PATH",
        help="your own copy of LLaDA's generate.py: its code is run, and P1 and P2 compare with it",
    )
    options = parser.parse_args(arguments)
    log = Console(stderr=True)
    try:
        unknown = [name for name in options.names if name.upper() not in BENCHMARKS]
        if unknown:
            raise CrocodilError(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
        if options.json and not options.json.resolve().parent.is_dir():
            raise CrocodilError(f"--json {options.json}: its folder does not exist; make it first")
        bench = bench_of(options.quick, options.device, options.official)
    except CrocodilError as error:
        log.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    if bench.anchor.path:
        log.print(f"running the code of {bench.anchor.path}, because --official asks for it")
    names = [name.upper() for name in options.names] or list(BENCHMARKS)
    document = measure([BENCHMARKS[name] for name in dict.fromkeys(names)], bench, log)
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    out = Console()
    (out if out.is_terminal else Console(width=150)).print(table_of(document))
    return int(any(benchmark["error"] for benchmark in document["benchmarks"]))


if __name__ == "__main__":
    sys.exit(main())
