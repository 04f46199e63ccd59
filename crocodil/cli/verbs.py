"""One function for each verb: read, check, load, run, show."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import crocodil
from crocodil.cli.inputs import held_out_sources, read_file, read_source, read_sources
from crocodil.errors import CrocodilError
from crocodil.report.progress import bar, pieces_of_work, spinner, spinner_then_bar
from crocodil.report.records import Decoding, Demasking, Report, Synthesis, Written
from crocodil.report.visible import visible

if TYPE_CHECKING:
    from crocodil.model import Model
    from crocodil.report.forming import Forming
    from crocodil.sampler.demask import Step
    from crocodil.synthesis import Generated

TABLE_TOKENS = 384
"""Tokens of the windows that the small table of `autoencode --report` is measured on; seconds on two cores."""
PICTURE_NFE = 16
"""Steps of the picture of a demasking, or the nearest NFE that was asked for."""
MOST_NOISE = 1000
"""Largest sigma. Registers have deviation 1, so nothing is left of them; much larger ones overflow."""


def autoencode(args: argparse.Namespace) -> None:
    """Texts to registers and back (Alg. 6)."""
    sources = read_sources(args.files, args.held_out)
    folder = _folder(args.report)
    model = _load(args)
    from crocodil.report import measure
    from crocodil.reproduce import paper

    decoding = _decoding(args)
    length = decoding.length or model.window
    rows = paper.rows(length, nfes=decoding.nfe) if folder else []
    measure.rehearse(model, decoding, rows)
    window = min(length, model.window)
    texts = measure.pieces(model, sources, window, -(-TABLE_TOKENS // window)) if folder else []
    encoded = measure.encode(model, sources, decoding.k, decoding.truncate)
    with bar("autoencoding", measure.window_evaluations(encoded, decoding.nfe)) as progress:
        results = measure.reconstruct(model, encoded, decoding, progress)
    with bar("block size × NFE", len(texts) * sum(nfe for _, nfe in rows)) as progress:
        grid = measure.score_grid(model, texts, rows, decoding, progress) if texts else []
    demasking = None
    if folder:
        shown = next((one for one in encoded if one.text), encoded[0])
        steps = min(decoding.nfe, key=lambda nfe: abs(nfe - PICTURE_NFE))
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
        title = (
            "A text through registers and back" if len(sources) == 1 else "Texts through registers and back"
        )
        measured = {"reconstructions": results, "grid": grid, "grid_length": length, "demasking": demasking}
        _write(folder, _report(model, decoding, title, **measured))


def encode(args: argparse.Namespace) -> None:
    """Texts to a file of registers."""
    sources = read_sources(args.files)
    out = Path(args.out)
    if args.out == "-":
        raise CrocodilError("--out - is not stdout; name the file to write registers to")
    if not out.parent.is_dir():
        raise CrocodilError(f"{out.parent}, the folder of --out, does not exist; make it first")
    _check_writable(out, "--out")
    if any(os.path.realpath(out) == os.path.realpath(source.file) for source in sources):
        raise CrocodilError(f"--out {out} is one of the texts; name the file to write registers to")
    model = _load(args)
    registers = model.encode(
        [s.text for s in sources], args.k, truncate=args.truncate, split=not args.truncate
    )
    registers.save(out)
    _say(f"{out}: {sum(registers.windows)} windows of {registers.k} registers, {registers.D} wide")
    if args.json:
        items = [
            {"file": source.file, "windows": windows}
            for source, windows in zip(sources, registers.windows, strict=True)
        ]
        _print_json(
            {"model": model.name, "out": str(out), "k": registers.k, "D": registers.D, "items": items}
        )


def decode(args: argparse.Namespace) -> None:
    """A file of registers to texts. One text at one NFE is printed as it is, several stand under headings."""
    read_file(args.registers)
    model = _load(args)
    from crocodil.registers.registers import Registers
    from crocodil.report import measure

    decoding = _decoding(args)
    registers = Registers.load(args.registers)
    measure.rehearse(model, decoding)
    with bar("decoding", len(registers.values_WKD) * sum(decoding.nfe)) as progress:
        items = measure.decode(model, registers, decoding, progress)
    if args.json:
        _print_json({"model": model.name, "items": [asdict(item) for item in items]})
    else:
        _print_texts([(f"text {item.index + 1}, NFE {item.nfe}", item.text) for item in items])


def interpolate(args: argparse.Namespace) -> None:
    """Texts on the way from one to another (App. D, Fig. 8)."""
    if args.files == ["-", "-"]:
        raise CrocodilError("stdin is one text; name a file for the other end")
    a, b = (read_source(file) for file in args.files)
    model = _load(args)
    from crocodil.report import measure

    decoding = _decoding(args)
    measure.rehearse(model, decoding)
    first, second = (one.registers for one in measure.encode(model, [a, b], decoding.k, decoding.truncate))
    if first.windows != second.windows:
        raise CrocodilError(
            f"{a.file} takes {first.windows[0]} windows and {b.file} {second.windows[0]}; only as many can be mixed, "
            "and --truncate cuts both to one"
        )
    mixed = [(alpha, first.mix(second, alpha)) for alpha in args.alphas]
    with bar("interpolating", len(mixed) * len(first.values_WKD) * sum(decoding.nfe)) as progress:
        items = [
            {"alpha": alpha, "text": item.text, "nfe": item.nfe, "seconds": item.seconds}
            for alpha, registers in mixed
            for item in measure.decode(model, registers, decoding, progress)
        ]
    if args.json:
        _print_json({"model": model.name, "items": items})
    else:
        _print_texts([(f"alpha {item['alpha']:g}, NFE {item['nfe']}", str(item["text"])) for item in items])


def generate(args: argparse.Namespace) -> None:
    """New texts out of noise (Alg. 2, 3)."""
    if args.refresh and not (min(args.refresh) >= 0 and max(args.refresh) < 1):
        raise CrocodilError("--refresh must be between 0 (none) and below 1 of the steps")
    folder = _folder(args.report)
    model = _load(args)
    from crocodil.canvas import lay_out
    from crocodil.report.forming import Forming
    from crocodil.synthesis import count_steps, find_method, is_chained, refreshes, usual_draws

    window = lay_out(model.vocabulary, model.resolve_length(args.length), args.prompt, args.template)
    method = find_method(args.method, args.refresh)
    draws = usual_draws(model, args.method, method) if args.draws is None else args.draws
    steps = count_steps(args.nfe, window.slots, is_chained(draws, args.corrector, args.remasking))
    refreshed = refreshes(method, steps)
    names = (
        "method", "length", "min_length", "prompt", "template", "k", "refresh", "guidance", "temperature",
        "remasking", "draws", "estimate", "corrector",
    )  # fmt: skip
    options = {name: getattr(args, name) for name in names}
    # what will be refused is refused now, and slow first evaluations are off the clock
    model.generate(**options, nfe=1, latent_steps=1, refresh_steps=1)
    forming = Forming(model.vocabulary, window.ids_N)
    options |= {"nfe": args.nfe, "latent_steps": args.latent_steps, "refresh_steps": args.refresh_steps}
    wait = "" if args.method in ("mdm", "cadd") else "drawing registers out of noise"
    with _watch(args, forming, steps, refreshed, wait) as on_step:
        made = model.generate(args.n, seed=args.seed, block_size=args.block_size, on_step=on_step, **options)
    texts = [_written(one) for one in made]
    if args.json:
        items = [asdict(text) for text in texts]
        _print_json({"model": model.name, "method": args.method, "items": items})
    else:
        _print_texts([(_heading(at, text), text.text) for at, text in enumerate(texts)], sys.stdout.isatty())
    if folder:
        z_kD = made[0].registers_kD
        k = 0 if z_kD is None else len(z_kD)
        first, length = texts[0], window.length
        name = f"text 1, seed {first.seed}"
        _write(
            folder,
            _report(
                model,
                Decoding((), k),
                "A text out of noise" if args.n == 1 else "Texts out of noise",
                demasking=Demasking(name, forming.tokens, first.nfe, min(args.block_size or length, length)),
                synthesis=Synthesis(
                    args.method,
                    steps,
                    args.latent_steps,
                    args.refresh_steps,
                    args.temperature,
                    tuple(step for step in sorted(refreshed) if step < first.nfe),
                    texts,
                ),
            ),
        )


def vary(args: argparse.Namespace) -> None:
    """Texts near a given one: its registers noised to each strength, denoised, and decoded."""
    if min(args.strength) < 0 or max(args.strength) > 1:
        raise CrocodilError("--strength must be between 0 (the text itself) and 1 (nothing of it)")
    source = read_source(args.file)
    model = _load(args)
    from crocodil.canvas import lay_out
    from crocodil.report.forming import Forming

    fits = model.window - 2
    if not args.truncate and len(model.vocabulary.encode(source.text, limit=fits + 1)) > fits:
        raise CrocodilError(
            f"{source.file} is longer than the window of {model.window} tokens; --truncate cuts it"
        )
    options = {name: getattr(args, name) for name in ("k", "temperature", "truncate")}
    model.vary(source.text, **options, nfe=1, latent_steps=1)
    options |= {"nfe": args.nfe, "latent_steps": args.latent_steps, "seed": args.seed}
    window = lay_out(model.vocabulary, model.window)
    found: list[tuple[float, Written]] = []
    for strength in args.strength:
        wait = f"drawing registers at strength {strength:g}" if strength else ""
        forming = Forming(model.vocabulary, window.ids_N)
        with _watch(args, forming, min(args.nfe, window.slots), (), wait) as on_step:
            made = model.vary(source.text, strength, args.n, on_step=on_step, **options)
        found += [(strength, _written(one)) for one in made]
    if args.json:
        items = [{"strength": strength, **asdict(text)} for strength, text in found]
        _print_json({"model": model.name, "items": items})
    else:
        headings = [f"strength {s:g}, {_heading(at % args.n, text)}" for at, (s, text) in enumerate(found)]
        texts = [text.text for _, text in found]
        _print_texts(list(zip(headings, texts, strict=True)), sys.stdout.isatty())


def evaluate(args: argparse.Namespace) -> None:
    """The table block size × NFE (Tab. 1) on held-out programs."""
    if args.source is not None and (args.files or args.held_out):
        raise CrocodilError("--source brings its own texts, so name no files and no --held-out beside it")
    sources = (
        read_sources(args.files, args.held_out) if args.source is None else held_out_sources(args.source)
    )
    folder = _folder(args.report)
    model = _load(args)
    from crocodil.report import measure
    from crocodil.reproduce import paper

    decoding = Decoding((), args.k, None, args.length, args.temperature, args.seed)
    length = decoding.length or model.window
    rows = paper.rows(length, args.block_size, args.nfe)
    measure.rehearse(model, decoding, rows)
    texts = measure.pieces(model, sources, min(length, model.window), args.windows)
    if not texts:
        raise CrocodilError("the files are empty, so there is nothing to measure; name others")
    with bar("evaluating", len(texts) * sum(nfe for _, nfe in rows)) as progress:
        grid = measure.score_grid(model, texts, rows, decoding, progress)
    if args.json:
        _print_json(
            {
                "model": model.name,
                "k": model.K if args.k is None else args.k,
                "length": length,
                "windows": len(texts),
                "rows": [asdict(row) for row in grid],
            }
        )
    else:
        from crocodil.report.terminal import show_grid

        show_grid(_console(), grid)
    if folder:
        title = "Reconstruction by block size and NFE"
        _write(folder, _report(model, decoding, title, grid=grid, grid_length=length))


def likelihood(args: argparse.Namespace) -> None:
    """Cross-entropy and top-1 of masked tokens, by masking level (Fig. 4) and by register noise (Fig. 7)."""
    if min(args.levels) <= 0 or max(args.levels) > 1:
        raise CrocodilError("--levels must be above 0 and at most 1, which masks everything")
    if min(args.sigmas) < 0 or max(args.sigmas) > MOST_NOISE:
        raise CrocodilError(f"--sigmas must be between 0 and {MOST_NOISE}")
    model = _load(args)
    ks = args.k or tuple(dict.fromkeys(min(k, model.K) for k in (0, 8, 64, model.K)))
    if min(ks) < 0 or max(ks) > model.K:
        raise CrocodilError(f"--k must be between 0 and {model.K}, the registers of this model")
    from crocodil.reproduce.measures.masked_tokens import by_level, by_noise
    from crocodil.reproduce.texts import held_out_windows

    with spinner("reading held-out texts"):
        samples = held_out_windows(model, args.source, args.windows)
    with spinner(f"scoring {len(samples)} windows"):
        levels = by_level(model, samples, ks, args.levels)
        noise = by_noise(model, samples, args.sigmas, model.K)
    if args.json:
        _print_json(
            {
                "model": model.name,
                "windows": len(samples),
                "levels": [asdict(score) for score in levels],
                "noise": [{"sigma": one.sigma, **asdict(one.score)} for one in noise],
            }
        )
        return
    from crocodil.report.terminal import show_levels, show_noise

    show_levels(_console(), levels)
    show_noise(_console(), noise)


def reproduce(args: argparse.Namespace) -> None:
    """Figures and tables of the paper: measure, draw, and show them beside the paper's values."""
    names = [name for name in args.names if "=" not in name]
    overrides = tuple(name for name in args.names if "=" in name)
    with spinner("reading what there is to measure"):
        from crocodil.reproduce.figures import FIGURES
    if args.list:
        if args.json:
            told = ("place", "title", "finding")
            _print_json([{"name": n} | {key: getattr(f, key) for key in told} for n, f in FIGURES.items()])
        else:
            for name, figure in FIGURES.items():
                print(f"{name:12} {figure.place:18} {figure.title}")
        return
    chosen = choose(names, list(FIGURES))
    import transformers

    from crocodil.reproduce.config import preset
    from crocodil.reproduce.lab import Lab
    from crocodil.reproduce.pages import write
    from crocodil.reproduce.run import own_device, ranks, reproduce

    transformers.logging.disable_progress_bar()
    name = args.preset or ("nano" if args.model == "bundled" else "paper")
    config = preset(name, overrides)
    out = _folder(args.out, option="--out")
    assert out is not None
    if (out / "measured").exists() and not (out / "measured").is_dir():
        raise CrocodilError(f"--out: {out / 'measured'} is no folder; name another --out")
    if args.markdown is not None:
        _check_markdown(Path(args.markdown), out)
    first = ranks()[0] == 0
    lab = Lab(config, out / "measured", args.model, args.denoiser, own_device())
    if first:
        _say(f"preset {name}; results in {out}, where an interrupted run goes on")
    typed = [*overrides, *(word for folder in args.denoiser for word in ("--denoiser", folder))]
    try:
        with pieces_of_work(first) as progress:
            results = reproduce(lab, [FIGURES[one] for one in chosen], name, progress, typed)
    except KeyboardInterrupt:
        _say(f"what has been measured is kept in {out}; the same command goes on from it")
        raise
    if results is None:
        return
    page = write(out, results, args.markdown)
    if args.json:
        from crocodil.reproduce.result import to_json

        _print_json([json.loads(to_json(result)) for result in results])
    else:
        from crocodil.reproduce.terminal import show

        for result in results:
            show(_console(), result)
    _say(f"report: {page}")


def choose(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The figures asked for, in the order of the report.

    Raises:
        CrocodilError: none is named, or one that there is not.
    """
    for name in names:
        if name not in known and name != "all":
            near = difflib.get_close_matches(name, known, 1)
            raise CrocodilError(
                f"no figure {name!r}{f': did you mean {near[0]}?' if near else ''}; crocodil reproduce --list names them"
            )
    if not names:
        raise CrocodilError("name a figure, as table1, or all; crocodil reproduce --list names them")
    return [name for name in known if name in names or "all" in names]


def passk(args: argparse.Namespace) -> None:
    """pass@k on programming problems, in a sandbox."""
    from crocodil.harness.problems import read_problems
    from crocodil.harness.sandbox import Limits

    problems, limits = read_problems(args.problems), Limits(seconds=args.seconds)
    folder = _folder(args.out, "samples.jsonl", "--out")
    model = _load(args)
    from crocodil.harness import command

    ks = args.k or tuple(dict.fromkeys((1, args.samples)))
    with bar("answers", len(problems) * args.samples) as progress:
        scores = command.run(
            model, problems, args.samples, ks, seed=args.seed, workers=args.workers, limits=limits, folder=folder,
            require_network_isolation=args.require_network_isolation, on_done=lambda sample: progress(1),
            method=args.method, nfe=args.nfe, temperature=args.temperature,
        )  # fmt: skip
    if args.json:
        _print_json({"model": model.name} | asdict(scores))
    else:
        command.show(_console(), scores)


def info(args: argparse.Namespace) -> None:
    """What a model is."""
    model = _load(args)
    from crocodil.report.facts import model_facts

    facts = asdict(model_facts(model))
    if args.json:
        _print_json(facts)
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{kind} {count:,}" for kind, count in value.items()) or "none"
        shown = f"{value:,}" if isinstance(value, int) else value or "not stated"
        print(f"{name.replace('_', ' '):20} {visible(shown)}")


def plan(args: argparse.Namespace) -> None:
    """What a training costs."""
    with spinner("counting"):
        from crocodil.joint import DemaskerRecipe
        from crocodil.plan.networks import networks
        from crocodil.plan.planner import Place, plan
        from crocodil.plan.terminal import headline, show
        from crocodil.training.config import load_config

        try:
            config = load_config(DemaskerRecipe, args.config, args.overrides)
        except CrocodilError as error:
            raise CrocodilError(f"{error} (plan knows what train_demasker.py knows)") from None
        launch = args.launch or ("zero3" if args.gpus > 1 else "ddp")
        place = Place(args.gpus, args.gpu, launch, args.gpus_per_node, args.between * 1e9, args.mfu)
        found = plan(networks(config), place, args.texts, args.mean_length)
    if args.json:
        _print_json({"headline": headline(found)} | found.document())
    else:
        show(_console(), found)


def export(args: argparse.Namespace) -> None:
    """A model folder out of a model, a checkpoint or adapters."""
    with spinner("reading and writing weights"):
        from crocodil.export import export

        made = export(
            args.source, args.out, args.dtype, llada=args.llada, average=args.average, base=args.base
        )
    step = "" if made.step is None else f" of step {made.step:,}{', averaged' if made.averaged else ''}"
    _say(f"{made.out}: {made.kind}{step} in {made.dtype}, {made.bytes / 1e6:,.1f} MB of weights")
    if made.left:
        _say(
            f"left out: the {' and '.join(made.left)} denoiser, trained on registers of the encoder as it was; train it "
            "anew, or keep the dtype"
        )
    if args.json:
        _print_json(asdict(made))


def _load(args: argparse.Namespace) -> Model:
    with spinner("loading the model"):
        return crocodil.load(
            args.model, denoisers=getattr(args, "denoiser", ()), adapters=args.adapters, dtype=args.dtype
        )


@contextmanager
def _watch(
    args: argparse.Namespace, forming: Forming, steps: int, refreshes: Collection[int], wait: str
) -> Iterator[Callable[[Step], None]]:
    """The first text while it is written, where somebody looks at stdout; else a bar, where somebody looks at stderr.

    Gives:
        What is to be told of every step.
    """
    if sys.stdout.isatty() and not args.json:
        from crocodil.report.live import watch

        with watch(_console(), forming, args.n, refreshes, wait) as note:
            yield note
        return
    with spinner_then_bar(wait or "writing", "writing", args.n * steps) as progress:

        def on_step(step: Step) -> None:
            forming.note(step)
            progress(len(step.ids_BN))

        yield on_step


def _written(one: Generated) -> Written:
    return Written(one.text, one.seed, one.nfe, one.nfe_paper, one.nfe_wall, one.seconds)


def _heading(at: int, text: Written) -> str:
    counts = f"NFE {text.nfe} (paper's count {text.nfe_paper:.1f}, wall {text.nfe_wall:.1f})"
    return f"text {at + 1}, seed {text.seed}, {counts}, {text.seconds:.1f} s"


def _decoding(args: argparse.Namespace) -> Decoding:
    truncate = getattr(args, "truncate", False)
    k = getattr(args, "k", None)
    return Decoding(args.nfe, k, args.block_size, args.length, args.temperature, args.seed, truncate)


def _folder(name: str | None, file: str = "index.html", option: str = "--report") -> Path | None:
    """A folder to write into, refused early where `file` cannot be written there. It is made late, with the file."""
    if name is None:
        return None
    if not name or (os.path.lexists(name) and not os.path.isdir(name)):
        raise CrocodilError(f"{option} {name!r} is no folder; name one")
    _check_writable(Path(name) / file, option)
    return Path(name)


def _check_markdown(file: Path, out: Path) -> None:
    """Refuse a page whose name is not free for it, or whose folder of pictures is not."""
    beside = file.with_suffix("")
    if file.suffix != ".md" or not file.stem.strip("."):
        raise CrocodilError(f"--markdown: {file} is no name of a Markdown page; give one that ends in .md")
    if file.resolve().parent == out.resolve():
        raise CrocodilError(f"--markdown: {out} holds the results; give a page outside of it")
    if beside.exists() and not beside.is_dir():
        raise CrocodilError(f"--markdown: {beside} must be free for the page's pictures; give another name")
    _check_writable(file, "--markdown")


def _check_writable(file: Path, option: str) -> None:
    """Refuse, before anything is computed for it, a file that cannot be written in the end."""
    there = Path(os.path.realpath(file))
    # a path with a link left in it leads in a circle
    if there.is_symlink() or (file.exists() and not file.is_file()):
        raise CrocodilError(f"{option}: {file} is a folder, a device or a loop of links; name a file")
    folder = next(parent for parent in there.parents if os.path.lexists(parent))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise CrocodilError(
            f"{option}: {file} cannot be written, as {folder} is no folder that can be written to"
        )


def _report(model: Model, decoding: Decoding, title: str, **measured: Any) -> Report:
    from crocodil.report.facts import machine, model_facts

    k = model.K if decoding.k is None else decoding.k
    return Report(title, model_facts(model), k, machine(model.device), crocodil.__version__, **measured)


def _write(folder: Path, report: Report) -> None:
    from crocodil.report.page import write_report

    _say(f"report: {write_report(folder, report)}")


class _Pipe(Console):
    """A console that lets `main` see that its reader has left, which rich would end the program for."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _console() -> Console:
    return _Pipe(file=sys.stdout, highlight=False)


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _print_json(document: object) -> None:
    # ASCII, so that it is the same whatever the terminal's encoding
    print(json.dumps(document, indent=2, allow_nan=False))


def _print_texts(texts: Sequence[tuple[str, str]], always_headed: bool = False) -> None:
    """Texts under their headings, one alone without; as they are for a file or a pipe, harmless for a terminal."""
    for at, (heading, text) in enumerate(texts):
        if len(texts) > 1 or always_headed:
            text = f"{'' if at == 0 else chr(10)}==> {heading} <==\n{text}"
        if sys.stdout.isatty():
            print(visible(text), end="" if text.endswith("\n") else "\n")
        else:
            sys.stdout.flush()
            sys.stdout.buffer.write(text.encode("utf-8", errors="replace"))
