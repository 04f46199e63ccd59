"""The command line: what it prints where, its exit codes, and that bad input costs nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import crocodil
from crocodil.autoencoder import Autoencoder
from crocodil.bundle import save_autoencoder
from crocodil.cli import inputs, main, verbs
from crocodil.cli.arguments import parse
from crocodil.errors import CrocodilError
from crocodil.metrics.reconstruction import cer
from crocodil.model import Model
from crocodil.registers.registers import Registers
from crocodil.text.vocabulary import Vocabulary

WINDOW = 32


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory,
    make_autoencoder: Callable[..., Autoencoder],
    tiny_vocabulary: Vocabulary,
) -> str:
    """A model of random weights, K = 4, windows of 32 tokens."""
    folder = tmp_path_factory.mktemp("model")
    save_autoencoder(folder, make_autoencoder(embedding_size=tiny_vocabulary.size), tiny_vocabulary, WINDOW)
    return str(folder)


@pytest.fixture(scope="module")
def model(bundle: str) -> Model:
    return crocodil.load(bundle, "cpu")


@pytest.fixture(autouse=True)
def one_load(model: Model, bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading is the model's business; here it happens once."""
    load = crocodil.load
    monkeypatch.setattr(crocodil, "load", lambda name, **rest: model if name == bundle else load(name))


@pytest.fixture
def files(tmp_path: Path, programs: tuple[str, ...]) -> list[str]:
    """Four programs, the last one empty."""
    paths = []
    for name, text in zip("abcd", (*programs[:3], ""), strict=True):
        (tmp_path / f"{name}.py").write_text(text, "utf-8")
        paths.append(str(tmp_path / f"{name}.py"))
    return paths


@pytest.fixture
def run(bundle: str, capsysbinary: pytest.CaptureFixture[bytes]) -> Callable[..., tuple[int, str, str]]:
    """`run("autoencode", …)` gives the exit code, stdout and stderr."""

    def call(verb: str, *words: object) -> tuple[int, str, str]:
        code = main([verb, *map(str, words), *([] if "--model" in words else ["--model", bundle])])
        out, err = capsysbinary.readouterr()
        return code, out.decode(), err.decode()

    return call


Run = Callable[..., tuple[int, str, str]]


def document(result: tuple[int, str, str]) -> Any:
    """The one JSON document on stdout."""
    code, out, _ = result
    assert code == 0
    return json.loads(out)


# --- autoencode ---


def test_json_has_an_item_for_each_file_and_nfe_in_order(run: Run, files: list[str], bundle: str) -> None:
    found = document(run("autoencode", *files, "--nfe", "4,16", "--json"))
    assert set(found) == {"model", "items"} and found["model"] == bundle
    assert [(item["file"], item["nfe"]) for item in found["items"]] == [
        (f, n) for f in files for n in (4, 16)
    ]
    for item in found["items"]:
        assert set(item) == {"file", "source", "text", "cer", "nfe", "seconds"}
        assert item["source"] == Path(item["file"]).read_text("utf-8")
        assert item["cer"] == pytest.approx(cer(item["text"], item["source"])) and item["seconds"] > 0


def test_the_text_is_what_the_api_gives(run: Run, files: list[str], model: Model) -> None:
    options = ["--nfe", 6, "--k", 2, "--block-size", 8, "--temperature", 0.7, "--seed", 3]
    (item,) = document(run("autoencode", files[1], *options, "--json"))["items"]
    text = model.autoencode(item["source"], 2, nfe=6, block_size=8, temperature=0.7, seed=3)[0]
    assert item["text"] == text


def test_a_long_file_goes_window_by_window_or_is_cut(run: Run, tmp_path: Path, model: Model) -> None:
    file = tmp_path / "long.py"
    file.write_text("side = side * side\n" * 40)
    (whole,) = document(run("autoencode", file, "--json"))["items"]
    (cut,) = document(run("autoencode", file, "--truncate", "--json"))["items"]
    assert whole["source"] == file.read_text() and whole["source"].startswith(cut["source"])
    assert cut["text"] == model.autoencode(file.read_text(), truncate=True)[0]


@pytest.mark.parametrize(
    "text", ["", "\x00\x01", "x = 1\r\n", "\ufeffx", "日本 😀", "<|endoftext|><|mdm_mask|>", "\x1b[31m"]
)
def test_any_utf8_file_is_a_text(run: Run, tmp_path: Path, text: str) -> None:
    file = tmp_path / "odd.py"
    file.write_bytes(text.encode())
    (item,) = document(run("autoencode", file, "--json"))["items"]
    assert item["source"] == text


def test_stdin_is_a_file_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(__file__).open("rb") as stream:
        monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": stream}))
        (item,) = document(run("autoencode", "-", "--nfe", 2, "--json"))["items"]
    assert item["file"] == "-" and item["source"] == Path(__file__).read_text("utf-8")


def test_without_json_the_texts_stand_side_by_side(run: Run, files: list[str]) -> None:
    code, out, err = run("autoencode", *files, "--nfe", 4, 16)
    assert code == 0 and err == ""
    assert "def area(side):" in out and "NFE 4" in out and "NFE 16" in out and "mean CER" in out
    assert "\x1b" not in out


def test_a_report_leaves_stdout_to_the_document(run: Run, files: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "new" / "report"
    result = run("autoencode", *files, "--nfe", "4,8", "--report", folder, "--json")
    assert len(document(result)["items"]) == 8
    page = (folder / "index.html").read_text("utf-8")
    assert str(folder / "index.html") in result[2] and page.count('<article class="file"') == 4
    assert "How a window was written" in page and "Block size and NFE" in page


def test_a_report_on_nothing_but_an_empty_file(run: Run, files: list[str], tmp_path: Path) -> None:
    code, _, _ = run("autoencode", files[3], "--report", tmp_path)
    assert code == 0 and "How a window was written" in (tmp_path / "index.html").read_text("utf-8")


# --- held-out programs ---


def test_without_files_bundled_programs_are_used(
    run: Run, tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "EXAMPLES", tmp_path)
    names = ["a.py", "b.py", "c.py", "d.py"]
    assert [i["file"] for i in document(run("autoencode", "--json"))["items"]] == names
    assert [i["file"] for i in document(run("autoencode", "--held-out", 2, "--json"))["items"]] == names[:2]
    code, out, err = run("autoencode", "--held-out", 5)
    assert (code, out) == (2, "") and "only 4" in err


def test_where_none_are_bundled_it_says_so(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "EXAMPLES", tmp_path / "none")
    code, out, err = run("autoencode")
    assert (code, out) == (2, "") and "name files" in err


# --- the other verbs ---


def test_encode_then_decode_is_autoencode(run: Run, files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "registers.safetensors"
    found = document(run("encode", *files, "--out", out, "--k", 2, "--json"))
    assert found["k"] == 2 and [item["file"] for item in found["items"]] == files
    decoded = document(run("decode", out, "--nfe", "4,8", "--json"))["items"]
    direct = document(run("autoencode", *files, "--k", 2, "--nfe", "4,8", "--json"))["items"]
    assert [(i["text"], i["nfe"]) for i in decoded] == [(i["text"], i["nfe"]) for i in direct]
    assert [i["index"] for i in decoded] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_one_decoded_text_is_printed_as_it_is_and_several_under_headings(
    run: Run, files: list[str], tmp_path: Path, model: Model
) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    run("encode", files[0], "--out", one)
    run("encode", files[0], files[1], "--out", two)
    text = model.autoencode(Path(files[0]).read_text(), nfe=4)[0]
    assert run("decode", one, "--nfe", 4)[1] == text
    assert run("decode", two, "--nfe", 4)[1].startswith(
        f"==> text 1, NFE 4 <==\n{text}\n==> text 2, NFE 4 <==\n"
    )


def test_the_ends_of_a_way_are_the_texts_themselves(run: Run, files: list[str], model: Model) -> None:
    found = document(run("interpolate", *files[:2], "--alphas", 0, 0.5, 1, "--nfe", 4, "--json"))
    assert [item["alpha"] for item in found["items"]] == [0, 0.5, 1]
    texts = [Path(file).read_text() for file in files[:2]]
    assert [item["text"] for item in found["items"]] == model.interpolate(*texts, (0, 0.5, 1), nfe=4)


def test_evaluate_gives_the_table(run: Run, files: list[str], tmp_path: Path) -> None:
    found = document(run("evaluate", *files, "--windows", 2, "--json", "--report", tmp_path))
    assert (found["windows"], found["length"], found["k"]) == (2, WINDOW, 4)
    assert [(row["block_size"], row["nfe"]) for row in found["rows"]][:2] == [(4, 8), (4, 16)]
    for row in found["rows"]:
        assert row["cer"] > 0 and row["seconds"] > 0 and 0 <= row["exact"] <= 1
    assert (tmp_path / "index.html").is_file()
    few = document(run("evaluate", files[0], "--nfe", 4, 8, "--block-size", "8,32", "--json"))
    assert [(r["block_size"], r["nfe"]) for r in few["rows"]] == [(8, 4), (8, 8), (32, 4), (32, 8)]
    assert "block size × NFE" in run("evaluate", files[0], "--nfe", 4)[1]


def test_likelihood_scores_levels_and_noise(run: Run, tmp_path: Path, programs: tuple[str, ...]) -> None:
    for index in range(100):
        (tmp_path / f"{index}.py").write_text(
            f"{programs[index % 3]}{index} = {index * 'x'!r}\n" * (index + 3)
        )
    options = ["--source", tmp_path, "--windows", 4, "--levels", 0.5, 1, "--sigmas", "0,1"]
    found = document(run("likelihood", *options, "--json"))
    assert set(found) == {"model", "windows", "levels", "noise"} and found["windows"] > 0
    # the default k of a model of four registers
    assert [(one["k"], one["t"]) for one in found["levels"]] == [(0, 0.5), (0, 1), (4, 0.5), (4, 1)]
    assert [(one["sigma"], one["k"], one["t"]) for one in found["noise"]] == [(0, 4, 0.9), (1, 4, 0.9)]
    assert all(one["cross_entropy"] > 0 and one["tokens"] > 0 for one in found["levels"] + found["noise"])
    code, out, _ = run("likelihood", *options, "--k", 2)
    assert code == 0 and "k = 2" in out and "sigma" in out


def test_info_names_the_sizes(run: Run, model: Model) -> None:
    found = document(run("info", "--json"))
    assert (found["K"], found["D"], found["window"]) == (4, 24, WINDOW)
    assert found["fingerprint"] == model.fingerprint and found["fingerprint"] in run("info")[1]


# --- what goes wrong ---


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, Path]:
    """Things that are no text, by name."""
    (tmp_path / "latin.py").write_bytes("x = 'é'\n".encode("latin-1"))
    (tmp_path / "cut.py").write_bytes("x = 'é".encode()[:-1])
    (tmp_path / "registers.safetensors").write_bytes(b"nonsense")
    (tmp_path / "folder").mkdir()
    (tmp_path / "good.py").write_text("x = 1\n")
    (tmp_path / "long.py").write_text("x = 1\n" * 50)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("missing")
    (tmp_path / "page" / "index.html").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe")
    return {path.name: path for path in tmp_path.iterdir()} | {
        name: tmp_path / name for name in ("missing.py", "good.py/below")
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("autoencode good.py missing.py", "missing.py does not exist"),
        ("autoencode folder", "folder is a folder"),
        ("autoencode good.py latin.py", "latin.py is not UTF-8: byte 0xe9 at offset 5"),
        ("autoencode cut.py", "cut.py is not UTF-8: byte 0xc3 at offset 5"),
        ("autoencode good.py good.py", "named twice"),
        ("autoencode good.py --held-out 1", "--held-out"),
        ("autoencode good.py --k 0", "k must be"),
        ("autoencode good.py --k 5", "k must be"),
        ("autoencode good.py --k two", "invalid int value"),
        ("autoencode good.py --nfe 4,0", "nfe = 0"),
        ("autoencode good.py --nfe 33", "nfe = 33 is more than the 32 positions"),
        ("autoencode good.py --nfe 3 --block-size 8", "nfe = 3 is less than the 4 blocks"),
        ("autoencode good.py --nfe some", "no list of numbers"),
        ("autoencode good.py --nfe ,", "no list of numbers"),
        ("autoencode good.py --block-size 0", "block_size = 0"),
        ("autoencode good.py --length 0", "length must be"),
        ("autoencode good.py --length 1000", "length must be"),
        ("autoencode good.py --temperature -1", "temperature = -1"),
        ("autoencode good.py --temperature nan", "temperature = nan"),
        ("autoencode good.py --report good.py", "good.py' is no folder"),
        ("autoencode good.py --report good.py/below", "no folder that can be written to"),
        ("autoencode good.py --report page", "index.html is a folder"),
        ("autoencode good.py --report loop", "is no folder"),
        ("autoencode good.py --report nowhere", "is no folder"),
        ("autoencode good.py --report=", "'' is no folder"),
        ("evaluate good.py --report=", "'' is no folder"),
        ("info --model bundled/cadd_ablations/digits_cadd", "is a model of images: open it with"),
        ("autoencode good.py --model missing.py", "holds no crocodil model"),
        ("autoencode good.py --frobnicate", "unrecognized arguments"),
        ("encode good.py", "--out"),
        ("encode good.py --out good.py", "one of the texts"),
        ("encode good.py --out folder", "is a folder"),
        ("encode good.py --out loop", "loop of links"),
        ("encode good.py --out pipe", "a device"),
        ("encode good.py --out /dev/null", "a device"),
        ("encode good.py --out -", "--out -"),
        ("encode good.py --out missing.py/out.safetensors", "does not exist"),
        ("decode missing.py", "missing.py does not exist"),
        ("decode -", "- does not exist; name a file that does"),
        ("decode registers.safetensors", "cannot be read as registers"),
        ("decode", "the following arguments are required"),
        ("interpolate good.py", "the following arguments are required"),
        ("interpolate good.py long.py", "good.py takes 1 windows"),
        ("interpolate good.py good.py --alphas inf", "no list of numbers"),
        ("interpolate - -", "stdin is one text"),
        ("evaluate good.py --nfe 2 --block-size 4", "no block size allows any NFE"),
        ("evaluate good.py --windows 0", "whole number from 1"),
        ("evaluate --source=", "no source ''"),
        ("evaluate good.py --source=", "name no files"),
        ("evaluate --source good.py", "is held out, it is too small"),
        ("likelihood --sigmas -1 0", "--sigmas must be"),
        ("likelihood --sigmas 1e38", "--sigmas must be"),
        ("likelihood --levels 0", "--levels must be"),
        ("likelihood --nfe 4", "unrecognized arguments"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Run, broken: dict[str, Path], words: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Model.decode

    def counted(self: Model, registers: Registers, **options: Any) -> Any:
        # refused before a text is decoded: the rehearsal writes none, or an empty one in a single step
        assert len(registers) == 0 or options["nfe"] == 1
        return decode(self, registers, **options)

    monkeypatch.setattr(Model, "decode", counted)
    verb, *rest = (str(broken.get(word, word)) for word in words.split())
    code, out, err = run(verb, *rest)
    assert (code, out) == (2, "")
    assert err.startswith("crocodil: ") and err.count("\n") == 1 and err.endswith("\n")
    assert message in err


@pytest.mark.parametrize("words", ["encode --out", "autoencode --report", "evaluate --report"])
def test_a_locked_folder_is_refused_early(
    run: Run, files: list[str], tmp_path: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    verb, option = words.split()
    code, out, err = run(verb, files[0], option, tmp_path / "new", "--model", "none")
    assert (code, out) == (2, "") and f"{tmp_path} is no folder that can be written to" in err


def test_a_report_that_comes_to_nothing_leaves_no_folder(run: Run, files: list[str], tmp_path: Path) -> None:
    assert run("autoencode", files[0], "--k", 99, "--report", tmp_path / "new")[0] == 2
    assert not (tmp_path / "new").exists()


def test_registers_go_where_a_link_points(run: Run, files: list[str], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    assert run("encode", files[0], "--out", tmp_path / "link")[0] == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").is_file()


def test_registers_of_another_model_are_refused(
    run: Run,
    files: list[str],
    tmp_path: Path,
    make_autoencoder: Callable[..., Autoencoder],
    tiny_vocabulary: Vocabulary,
) -> None:
    out, other = tmp_path / "registers.safetensors", tmp_path / "other"
    run("encode", files[0], "--out", out)
    other.mkdir()
    save_autoencoder(other, make_autoencoder(seed=1), tiny_vocabulary, WINDOW)
    code, printed, err = run("decode", out, "--model", other)
    assert (code, printed) == (2, "") and "another encoder" in err


@pytest.mark.parametrize("words", [["nonsense"], ["--nonsense"], ["auto"]])
def test_a_verb_that_is_none_is_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("crocodil: ") and err.count("\n") == 1


def test_nothing_at_all_asks_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([])
    assert left.value.code == 0 and "autoencode" in capsys.readouterr().out


def test_an_interruption_is_130(run: Run, files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "autoencode", interrupted)
    assert run("autoencode", files[0]) == (130, "", "crocodil: interrupted\n")


def test_a_disk_that_is_full_is_no_traceback(
    run: Run, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(args: object) -> None:
        raise OSError(28, "No space left on device", "registers.safetensors")

    monkeypatch.setattr(verbs, "encode", full)
    code, _, err = run("encode", files[0], "--out", "x")
    assert code == 2 and "No space left on device" in err and err.count("\n") == 1


def test_a_fault_of_ours_is_not_hidden(run: Run, files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(args: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(verbs, "info", faulty)
    with pytest.raises(RuntimeError, match="a bug"):
        run("info")


# --- arguments ---


@pytest.mark.parametrize(
    "words",
    [
        "a.py b.py --nfe 4 16 64",
        "--nfe 4 16 64 a.py b.py",
        "--nfe 4,16,64 a.py b.py",
        "a.py --nfe=4,16,64 b.py",
        "a.py --nfe 4, 16 ,64 b.py",
        "a.py --nfe 4,16,4,64 -- b.py",
    ],
)
def test_numbers_and_files_may_stand_in_any_order(words: str) -> None:
    args = parse(["autoencode", *words.split()])
    assert args.files == ["a.py", "b.py"] and args.nfe == (4, 16, 64)


@pytest.mark.parametrize(
    "words", ["--alphas -0.5,0.5", "--alphas -0.5 0.5", "--alphas=-0.5,0.5", "--alphas -5e-1 0.5"]
)
def test_numbers_may_begin_with_a_minus(words: str) -> None:
    args = parse(["interpolate", "a.py", *words.split(), "b.py"])
    assert args.alphas == (-0.5, 0.5) and args.files == ["a.py", "b.py"]


@pytest.mark.parametrize(
    ("words", "files"),
    [
        ("-- -x.py", ["./-x.py"]),
        ("a.py -- -x.py --nfe - 16", ["a.py", "./-x.py", "./--nfe", "-", "16"]),
        ("--nfe 4 -- 16", ["16"]),
        ("--nfe 4 - --k 2", ["-"]),
    ],
)
def test_what_follows_two_dashes_is_a_file(words: str, files: list[str]) -> None:
    assert parse(["autoencode", *words.split()]).files == files


def test_options_are_not_guessed() -> None:
    with pytest.raises(CrocodilError, match="unrecognized"):
        parse(["autoencode", "a.py", "--trunc"])


# --- as a process ---


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["autoencode", "--help"],
        ["generate", "--help"],
        ["--version"],
        ["autoencode", "missing.py"],
        ["generate", "--template", "[]"],
    ],
)
def test_what_needs_no_model_does_not_wait_for_torch(words: list[str], tmp_path: Path) -> None:
    program = (
        "import sys\nfrom crocodil.cli import main\n"
        f"try:\n    main({words!r})\nfinally:\n    assert 'torch' not in sys.modules, 'torch'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0 and "AssertionError" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("verb", ["info", "autoencode --help", "evaluate --help"])
def test_a_terminal_without_our_characters_gets_question_marks(encoding: str, verb: str) -> None:
    program = (
        "import sys\nfrom crocodil.cli import main, verbs\n"
        f"verbs.info = lambda args: print('× 日本 ↵')\nsys.exit(main({verb.split()!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0 and done.stderr == b""
    assert (b"?" in done.stdout) == (verb == "info" or (verb, encoding) == ("evaluate --help", "ascii"))


@pytest.mark.parametrize(
    ("words", "closed", "code", "message"),
    [
        ("info", ">&-", 0, ""),
        ("--help", ">&-", 0, ""),
        ("decode missing.py", "2>&-", 2, ""),
        ("decode missing.py", ">&- 2>&-", 2, ""),
        ("autoencode -", "<&-", 2, "- is stdin, which is closed"),
    ],
)
def test_closed_streams_are_no_fault(words: str, closed: str, code: int, message: str) -> None:
    program = (
        "import sys\nfrom crocodil.cli import main, verbs\n"
        f"verbs.info = lambda args: print('x')\nsys.exit(main({words.split()!r}))\n"
    )
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, program],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    program = (
        "import sys\nfrom crocodil.cli import main, verbs\n"
        "verbs.info = lambda args: [print('x' * 1000) for _ in range(10000)]\nsys.exit(main(['info']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(30) == 141 and process.stderr.read() == b""
    process.stderr.close()
