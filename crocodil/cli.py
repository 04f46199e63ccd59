"""The command line: thin verbs over the functions of the package.

Results go to stdout, with --json as exactly one document; progress and messages go to stderr. Exit codes: 0 done, 2 bad
input or usage, 130 interrupted, 1 a fault of ours. Nothing heavy is imported before the input is known to be readable.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from crocodil.errors import CrocodilError

if TYPE_CHECKING:
    pass

EXAMPLES = Path(__file__).parent / "models" / "nano" / "examples"
"""Programs of the held-out split of the bundled model's corpus."""
REPORT_WINDOWS = 4
"""Windows that the small table of `autoencode --report` is measured on."""
PICTURE_NFE = 16
"""Steps of the picture of the demasking, or the nearest NFE that was asked for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` is the process's own if left out. Returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if (stream.encoding or "").lower().replace("-", "") != "utf8" and hasattr(stream, "reconfigure"):
            # a sign that a terminal cannot show is no reason to stop
            stream.reconfigure(errors="replace")
    try:
        args = _parse(list(sys.argv[1:] if argv is None else argv))
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read our output has gone, as in `crocodil … | head`; what is buffered must not complain again
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except (CrocodilError, OSError) as error:
        print(f"crocodil: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("crocodil: interrupted", file=sys.stderr)
        return 130
    return 0


# --- verbs ---


def autoencode(args: argparse.Namespace) -> None:
    """Texts to registers and back (Alg. 6)."""
    sources = _sources(args)
    folder = _report_folder(args.report)
    decoding = _decoding(args)
    model = _load(args.model)
    from crocodil.report import measure, paper
    from crocodil.report.progress import bar

    length = decoding.length or model.window
    rows = paper.full_grid(length, decoding.nfe) if folder else []
    measure.rehearse(model, decoding, rows)
    encoded = measure.encode(model, sources, decoding.k, decoding.truncate)
    with bar("autoencoding", measure.window_evaluations(encoded, decoding)) as progress:
        results = measure.reconstruct(model, encoded, decoding, progress)
    grid, demasking = [], None
    if folder:
        texts = measure.pieces(model, sources, min(length, model.window), REPORT_WINDOWS)
        if texts:
            with bar("block size × NFE", len(texts) * sum(nfe for _, nfe in rows)) as progress:
                grid = measure.score_grid(model, texts, rows, decoding, progress)
        steps = min(decoding.nfe, key=lambda nfe: abs(nfe - PICTURE_NFE))
        shown = next((one for one in encoded if one.text), encoded[0])
        demasking = measure.record_demasking(model, shown, decoding, steps)
    if args.json:
        _print_json({"model": model.name, "items": [asdict(result) for result in results]})
    else:
        from crocodil.report.terminal import show_demasking, show_grid, show_reconstructions

        console = _console()
        show_reconstructions(console, results)
        if grid:
            show_grid(console, grid)
        if demasking:
            show_demasking(console, demasking)
    if folder:
        title = f"{len(sources)} {'text' if len(sources) == 1 else 'texts'}, through registers and back"
        report = _report(model, decoding, title, results, grid, length, demasking)
        _write_report(folder, report)


def encode(args: argparse.Namespace) -> None:
    """Texts to a file of registers."""
    sources = _sources(args)
    out = Path(args.out)
    if not out.parent.is_dir():
        raise CrocodilError(f"the folder {out.parent} for --out does not exist; make it first")
    if out.is_dir() or any(_same(out, source.file) for source in sources):
        raise CrocodilError(
            f"--out {out} is a folder or one of the inputs; give the file to write registers to"
        )
    model = _load(args.model)
    registers = model.encode(
        [s.text for s in sources], args.k, truncate=args.truncate, split=not args.truncate
    )
    registers.save(out)
    _say(f"{len(registers)} texts in {sum(registers.windows)} windows of {registers.k} registers: {out}")
    if args.json:
        _print_json(
            {
                "model": model.name,
                "out": str(out),
                "k": registers.k,
                "D": registers.D,
                "items": [
                    {"file": s.file, "windows": windows}
                    for s, windows in zip(sources, registers.windows, strict=True)
                ],
            }
        )


def decode(args: argparse.Namespace) -> None:
    """A file of registers to texts. One text at one NFE is printed byte for byte; several stand under headings."""
    _check_file(args.registers)
    decoding = _decoding(args)
    model = _load(args.model)
    from crocodil.registers.registers import Registers
    from crocodil.report import measure
    from crocodil.report.progress import bar

    registers = Registers.load(args.registers)
    measure.rehearse(model, decoding)
    with bar("decoding", len(registers.values_WKD) * sum(decoding.nfe)) as progress:
        items = measure.decode(model, registers, decoding, progress)
    if args.json:
        _print_json({"model": model.name, "items": [asdict(item) for item in items]})
    else:
        _print_texts([(f"text {item.text_number}, NFE {item.nfe}", item.text) for item in items])


def interpolate(args: argparse.Namespace) -> None:
    """Texts on the way from one to another (App. D, Fig. 8)."""
    args.files, args.held_out = [args.a, args.b], None
    a, b = _sources(args, twice=True)
    decoding = _decoding(args)
    model = _load(args.model)
    from crocodil.report import measure
    from crocodil.report.progress import bar

    measure.rehearse(model, decoding)
    first, second = (one.registers for one in measure.encode(model, [a, b], decoding.k, decoding.truncate))
    if first.windows != second.windows:
        raise CrocodilError(
            f"{a.file} takes {first.windows[0]} windows and {b.file} {second.windows[0]}; texts of as many windows can "
            "be mixed, and --truncate cuts both to one"
        )
    total = len(args.alphas) * len(first.values_WKD) * sum(decoding.nfe)
    with bar("interpolating", total) as progress:
        items = [
            {"alpha": alpha, "text": item.text, "nfe": item.nfe, "seconds": item.seconds}
            for alpha in args.alphas
            for item in measure.decode(model, first.mix(second, alpha), decoding, progress)
        ]
    if args.json:
        _print_json({"model": model.name, "items": items})
    else:
        _print_texts([(f"alpha {item['alpha']:g}, NFE {item['nfe']}", item["text"]) for item in items])


def evaluate(args: argparse.Namespace) -> None:
    """The table block size × NFE (Tab. 1) on held-out programs."""
    sources = _sources(args)
    folder = _report_folder(args.report)
    decoding = _decoding(args)
    model = _load(args.model)
    from crocodil.report import measure, paper

    length = decoding.length or model.window
    rows = paper.grid(length)
    if args.nfe or args.block_sizes:
        nfes = args.nfe or tuple(dict.fromkeys(nfe for _, nfe in rows))
        rows = (
            [(block, nfe) for block in args.block_sizes for nfe in nfes]
            if args.block_sizes
            else paper.full_grid(length, nfes)
        )
    measure.rehearse(model, decoding, rows)
