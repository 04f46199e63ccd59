"""What the verbs take. argparse, because it starts ten times faster than what is built on top of it."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable
from typing import NoReturn, TypeVar

from crocodil import __version__
from crocodil.errors import CrocodilError

LISTS = ("--k", "--nfe", "--alphas", "--block-size", "--levels", "--sigmas", "--refresh", "--strength")
"""Options whose numbers may stand apart or behind commas."""
NUMBERS = re.compile(r"-?[\d.,][\d.,e+-]*")

DTYPES = ("bfloat16", "float16", "float32")
METHODS = ("mdm", "conthendisc", "conwithindisc", "alg3", "cadd")
REMASKING = ("low_confidence", "random", "ancestral", "entropy")
GPUS = ("a100-40", "a100-80", "h100", "h200")
LAUNCHES = ("zero3", "zero2", "ddp", "fsdp2", "zero3_offload")
TEMPLATE = r"""'["x = [", 24, "]\n"]'"""
SOURCE = (
    "held-out texts: bundled, or the held-out part of a corpus: stdlib, a folder, a .jsonl or .parquet file"
)

Number = TypeVar("Number", int, float)


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of one command, its name in `verb`.

    Raises:
        CrocodilError: usage, in one line.
        SystemExit: after --help and --version.
    """
    parser, verbs = _parsers()
    if not argv:
        argv = ["--help"]
    if argv[0] not in verbs:
        return parser.parse_args(argv)
    verb, *words = argv
    end = words.index("--") if "--" in words else len(words)
    # argparse takes a name that begins with a dash for an option, even behind `--`
    names = [f"./{word}" if word.startswith("-") and word != "-" else word for word in words[end + 1 :]]
    args = verbs[verb].parse_intermixed_args([*_join_numbers(words[:end]), *names])
    args.verb = verb
    if "model" in args and args.model is None:
        args.model = "bundled/cadd" if getattr(args, "method", None) == "cadd" else "bundled"
    return args


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and leaves the exit code to `main`."""

    def error(self, message: str) -> NoReturn:
        raise CrocodilError(f"{message}; see {self.prog} --help")


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(
        "crocodil",
        description="Texts to continuous registers and back, with a guided masked diffusion language model.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"crocodil {__version__}")
    choices = parser.add_subparsers(metavar="VERB", required=True)
    verbs: dict[str, _Parser] = {}

    def verb(name: str, summary: str, loads: bool = True) -> _Parser:
        made = choices.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if loads:
            _loading(made)
        made.add_argument("--json", action="store_true", help="print one JSON document on stdout")
        verbs[name] = made
        return made

    one = verb("autoencode", "write texts into registers and back, and show what became of them")
    _files(one)
    _held_out(one)
    _encoding(one)
    _decoding(one)
    _report(one)

    one = verb("encode", "write texts into a file of registers")
    _files(one)
    one.add_argument("--out", required=True, metavar="FILE", help="registers.safetensors to write")
    _encoding(one)

    one = verb("decode", "write a file of registers back into texts")
    one.add_argument("registers", metavar="REGISTERS", help="what `crocodil encode` wrote")
    _decoding(one)

    one = verb("interpolate", "texts on the way from one to another in register space")
    one.add_argument("files", nargs=2, metavar="FILE", help="the two ends; - reads stdin")
    one.add_argument(
        "--alphas",
        type=_several(float),
        default=(0.0, 0.25, 0.5, 0.75, 1.0),
        metavar="A",
        help="places on the way, 0 the first text and 1 the second (default 0,0.25,0.5,0.75,1)",
    )
    _encoding(one)
    _decoding(one)

    one = verb("generate", "write new texts out of noise, and show how the first one forms")
    one.add_argument(
        "--method",
        choices=METHODS,
        default="conwithindisc",
        help="where registers come from: nowhere (mdm), out of noise (conthendisc), and anew midway (conwithindisc, "
        "default) or after every step (alg3); nowhere, with a latent at every masked token (cadd)",
    )
    one.add_argument(
        "--length", type=_positive, metavar="N", help="positions of a window (default the model's)"
    )
    one.add_argument(
        "--min-length",
        type=_positive,
        default=0,
        metavar="N",
        help="positions in which no text ends (default none)",
    )
    given = one.add_mutually_exclusive_group()
    given.add_argument("--prompt", metavar="TEXT", help="how the texts begin")
    given.add_argument(
        "--template",
        type=_template,
        metavar="JSON",
        help=f"given texts, and numbers of tokens to write between them: {TEMPLATE}",
    )
    _synthesis(one, temperature=1.0, k="8 of those")
    one.add_argument(
        "--refresh",
        type=_several(float),
        metavar="A",
        help="fractions of the steps after which registers are drawn anew, 0 for never (default the method's)",
    )
    one.add_argument(
        "--refresh-steps",
        type=_positive,
        default=32,
        metavar="N",
        help="denoising steps of registers that are drawn anew (default 32)",
    )
    one.add_argument(
        "--guidance",
        type=_amount,
        default=1.0,
        metavar="W",
        help="weight of the text so far in a refresh; 1 is the condition alone (default)",
    )
    one.add_argument(
        "--block-size", type=_positive, metavar="N", help="positions of a block (default the window)"
    )
    one.add_argument(
        "--remasking",
        choices=REMASKING,
        help="which masked tokens are written first: the surest (low_confidence, default), any (random), each by chance "
        "(ancestral, default for cadd), or those whose predictions have the least entropy (entropy)",
    )
    one.add_argument(
        "--draws",
        type=_whole,
        metavar="K",
        help="chains of token latents, of a model that was trained with them; each costs an evaluation a step (default 1 "
        "for such a model, else 0)",
    )
    one.add_argument(
        "--estimate",
        choices=("hard", "soft", "drawn"),
        default="hard",
        help="what token latents move towards: the likeliest token's (hard, default), the mean (soft), or a drawn "
        "token's",
    )
    one.add_argument(
        "--corrector",
        type=_amount,
        default=0.0,
        metavar="X",
        help="share of a step that is gone too far and taken back, so that tokens can change (default 0)",
    )
    _report(one)

    one = verb("vary", "write texts near a given one: its registers are noised, denoised and decoded")
    one.add_argument("file", metavar="FILE", help="a UTF-8 text; - reads stdin")
    one.add_argument(
        "--strength",
        type=_several(float),
        default=(0.5,),
        metavar="S",
        help="noise levels, 0 the text itself and 1 nothing of it: one or several (default 0.5)",
    )
    _synthesis(one, temperature=0.0, k="all")
    one.add_argument(
        "--truncate",
        action="store_true",
        help="cut a text that is longer than the window, instead of refusing it",
    )

    one = verb("evaluate", "the table block size × NFE on held-out programs, as the paper's Table 1")
    _files(one)
    _held_out(one)
    one.add_argument("--source", help=f"{SOURCE}, instead of files")
    one.add_argument("--k", type=int, help="registers of each window (default all)")
    one.add_argument(
        "--windows", type=_positive, default=16, metavar="N", help="windows to score (default 16)"
    )
    one.add_argument("--nfe", type=_several(int), metavar="NFE", help="one or several (default the paper's)")
    one.add_argument(
        "--block-size",
        type=_several(int),
        metavar="N",
        help="one or several (default the paper's shares of the window)",
    )
    _sampling(one)
    _report(one)

    one = verb(
        "likelihood", "masked-token prediction by masking level and by register noise (Fig. 4, Fig. 7)"
    )
    one.add_argument("--source", default="bundled", help=SOURCE)
    one.add_argument(
        "--windows", type=_positive, default=128, metavar="N", help="windows to score (default 128)"
    )
    one.add_argument(
        "--k", type=_several(int), help="numbers of registers, 0 is unguided (default 0,8,64 and all)"
    )
    one.add_argument("--levels", type=_several(float), default=(0.1, 0.25, 0.5, 0.75, 0.9, 1.0), metavar="T",
                     help="masking levels (default 0.1,0.25,0.5,0.75,0.9,1)")  # fmt: skip
    one.add_argument("--sigmas", type=_several(float), default=(0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0), metavar="S",
                     help="noise on all registers, at 90 %% masking (default 0,0.25,0.5,0.75,1,1.5,2)")  # fmt: skip

    one = verb(
        "reproduce",
        "measure figures and tables of the paper: numbers, pictures, and the paper's values beside ours",
        loads=False,
    )
    _model(one)
    one.add_argument(
        "names",
        nargs="*",
        metavar="FIGURE|KEY=VALUE",
        help="table1, fig4, … or all (--list names them), and fields of the configuration, as fig4.windows=200 or "
        "judge=bundled/judge",
    )
    one.add_argument("--list", action="store_true", help="name every figure, and what the paper finds in it")
    one.add_argument(
        "--preset",
        metavar="NAME",
        help="paper (full size), nano (two CPU cores, 40 minutes), or a YAML file over the paper's sizes (default nano "
        "for the bundled model, paper for any other)",
    )
    one.add_argument(
        "--out",
        default="outputs/reproduction",
        metavar="DIR",
        help="where results are kept; an interrupted run goes on from them (default outputs/reproduction)",
    )
    one.add_argument("--markdown", metavar="FILE", help="write the results as a Markdown page too")
    _denoisers(one)

    one = verb("passk", "the share of programming problems that a model's programs solve, run in a sandbox")
    one.add_argument(
        "--problems",
        default="bundled",
        metavar="FILE",
        help="bundled (default), or a .jsonl or .jsonl.gz file as HumanEval's or MBPP's",
    )
    one.add_argument(
        "--samples", type=_positive, default=4, metavar="N", help="answers to each problem (default 4)"
    )
    one.add_argument(
        "--k",
        type=_several(int),
        metavar="K",
        help="one or several, at most --samples (default 1 and --samples)",
    )
    one.add_argument("--method", choices=METHODS, default="conwithindisc", help="as in generate")
    one.add_argument(
        "--nfe",
        type=_positive,
        default=32,
        metavar="NFE",
        help="demasker evaluations of an answer (default 32)",
    )
    one.add_argument(
        "--temperature",
        type=_amount,
        default=1.0,
        metavar="T",
        help="0 takes the likeliest token (default 1)",
    )
    one.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default 0)")
    one.add_argument(
        "--workers", type=_positive, metavar="N", help="programs that run at a time (default the CPUs)"
    )
    one.add_argument(
        "--seconds", type=_amount, default=10.0, metavar="S", help="wall time of a program (default 10)"
    )
    one.add_argument(
        "--require-network-isolation",
        action="store_true",
        help="refuse where only an audit hook keeps programs from the network",
    )
    one.add_argument(
        "--out", metavar="DIR", help="keep samples.jsonl, from which a killed run goes on, and scores.json"
    )
    _denoisers(one)

    verb("info", "what a model is: its sizes, registers, window, fingerprint and licence")

    one = verb(
        "plan",
        "what a training costs, before anything is rented: memory of a GPU, traffic, hours, checkpoints",
        loads=False,
    )
    one.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="fields of the configuration, as row_tokens=8192"
    )
    one.add_argument(
        "--config", required=True, metavar="FILE", help="a configuration of recipes/train_demasker.py"
    )
    one.add_argument("--gpus", type=_positive, required=True, metavar="N", help="GPUs in all")
    one.add_argument("--gpu", choices=GPUS, default="h100", help="which (default h100)")
    one.add_argument(
        "--launch",
        choices=LAUNCHES,
        help="the file of launch/ (default zero3; for one GPU ddp, of which gpu.yaml is the case)",
    )
    one.add_argument(
        "--gpus-per-node", type=_positive, default=8, metavar="N", help="GPUs of one machine (default 8)"
    )
    one.add_argument(
        "--between",
        type=_amount,
        default=40.0,
        metavar="GB/S",
        help="at which one GPU takes part in a collective across machines, as nccl-tests says it (default 40, assumed)",
    )
    one.add_argument(
        "--mfu",
        type=_amount,
        metavar="SHARE",
        help="of the peak that a step reaches which trains everything (default 0.4, on A100 0.5, assumed)",
    )
    one.add_argument(
        "--texts", type=_positive, metavar="N", help="training windows of an epoch, to count epochs"
    )
    one.add_argument(
        "--mean-length",
        type=_positive,
        metavar="N",
        help="tokens of a window on average (default each of data.lengths as often)",
    )

    one = verb(
        "export",
        "write a model folder: of another dtype, of a checkpoint, or with adapters merged",
        loads=False,
    )
    one.add_argument(
        "source",
        metavar="SOURCE",
        help="bundled, a model folder or hub id; a run of train_demasker.py or train_cadd.py, or one of its checkpoints; "
        "or adapters",
    )
    one.add_argument("--out", required=True, metavar="FOLDER", help="a folder that does not exist yet")
    one.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the weights on disk (default a model's own, the base's for adapters, the run's export_dtype)",
    )
    one.add_argument(
        "--llada", action="store_true", help="the demasker alone, as LLaDA is released, with its tokenizer"
    )
    one.add_argument(
        "--average",
        action=argparse.BooleanOptionalAction,
        help="take a checkpoint's average of weights, or the weights (default the average where there is one)",
    )
    one.add_argument(
        "--base", metavar="MODEL", help="what adapters were trained on, where it is not where they say"
    )
    return parser, verbs


def _model(parser: _Parser) -> None:
    parser.add_argument(
        "--model",
        help="bundled (default; for --method cadd bundled/cadd), a folder, or the id of a model on the hub, as org/name "
        "or org/name@revision",
    )


def _loading(parser: _Parser) -> None:
    _model(parser)
    parser.add_argument(
        "--adapters", metavar="FOLDER", help="LoRA adapters that were trained on the model, merged into it"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights in memory (default float32)")


def _files(parser: _Parser) -> None:
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="UTF-8 texts; - reads stdin (default the bundled held-out programs)",
    )


def _held_out(parser: _Parser) -> None:
    parser.add_argument(
        "--held-out",
        type=_positive,
        metavar="N",
        help="use N of the bundled held-out programs instead of files",
    )


def _encoding(parser: _Parser) -> None:
    parser.add_argument("--k", type=int, help="registers of each window (default all)")
    parser.add_argument(
        "--truncate",
        action="store_true",
        help="cut a text that is longer than the window, instead of going on",
    )


def _decoding(parser: _Parser) -> None:
    parser.add_argument(
        "--nfe",
        type=_several(int),
        default=(16,),
        metavar="NFE",
        help="demasker evaluations for each window: one or several, as 4,16,64 (default 16)",
    )
    parser.add_argument(
        "--block-size", type=int, metavar="N", help="positions of a block (default the window)"
    )
    _sampling(parser)


def _sampling(parser: _Parser) -> None:
    parser.add_argument(
        "--length", type=int, metavar="N", help="positions to write (default the model's window)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token (default)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the draws, where T > 0 (default 0)"
    )


def _synthesis(parser: _Parser, temperature: float, k: str) -> None:
    parser.add_argument("-n", type=_positive, default=1, metavar="N", help="texts to write (default 1)")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the first text, and one more for each (default 0)",
    )
    parser.add_argument(
        "--nfe", type=_positive, default=64, metavar="NFE", help="demasker evaluations of a text (default 64)"
    )
    parser.add_argument("--k", type=_positive, help=f"registers to use (default {k} that the denoisers make)")
    parser.add_argument(
        "--latent-steps",
        type=_positive,
        default=128,
        metavar="N",
        help="denoising steps of registers out of noise (default 128)",
    )
    parser.add_argument(
        "--temperature",
        type=_amount,
        default=temperature,
        metavar="T",
        help=f"0 takes the likeliest token (default {temperature:g})",
    )
    _denoisers(parser)


def _denoisers(parser: _Parser) -> None:
    parser.add_argument(
        "--denoiser",
        action="append",
        default=[],
        metavar="FOLDER",
        help="a denoiser in place of the model's own of its kind; may be given twice",
    )


def _report(parser: _Parser) -> None:
    parser.add_argument("--report", metavar="DIR", help="write an HTML report, DIR/index.html")


def _several(number: Callable[[str], Number]) -> Callable[[str], tuple[Number, ...]]:
    """Numbers behind commas, each once."""

    def read(text: str) -> tuple[Number, ...]:
        try:
            values = tuple(dict.fromkeys(number(part) for part in text.split(",") if part))
        except ValueError:
            values = ()
        if not values or not all(math.isfinite(value) for value in values):
            raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers, as in 4,16,64")
        return values

    return read


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return value


def _template(text: str) -> list[str | int]:
    try:
        parts = json.loads(text)
    except (ValueError, RecursionError):
        parts = None
    good = isinstance(parts, list) and any(type(part) is int for part in parts)
    if not good or not all(isinstance(part, str) or (type(part) is int and part > 0) for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text[:60]!r} is no JSON list of texts and of numbers of tokens to write, as {TEMPLATE}"
        )
    return parts


def _join_numbers(argv: list[str]) -> list[str]:
    """`--nfe 4 16 64` as `--nfe=4,16,64`, so that a file may follow and a number may begin with a minus."""
    joined: list[str] = []
    for word in argv:
        option, _, numbers = joined[-1].partition("=") if joined else ("", "", "")
        if option in LISTS and NUMBERS.fullmatch(word) and (not numbers or NUMBERS.fullmatch(numbers)):
            joined[-1] += f",{word}" if numbers else f"={word}"
        else:
            joined.append(word)
    return joined
