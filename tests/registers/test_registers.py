"""Registers as a value: slices, mixtures, files, and what is refused."""

from __future__ import annotations

import os
import pickle
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from crocodil.errors import CrocodilError
from crocodil.registers.geometry import normalise
from crocodil.registers.registers import Registers, concatenate


def three_texts(seed: int = 0) -> Registers:
    """Texts of 1, 3 and 2 windows, K = 4, D = 9."""
    values = torch.randn(6, 4, 9, generator=torch.Generator().manual_seed(seed))
    return Registers(normalise(values), (1, 3, 2), "an encoder")


def test_texts_can_be_taken_out() -> None:
    registers = three_texts()
    assert (len(registers), registers.k, registers.D) == (3, 4, 9)
    assert torch.equal(registers[1].values_WKD, registers.values_WKD[1:4]) and registers[1].windows == (3,)
    assert torch.equal(registers[-1].values_WKD, registers.values_WKD[4:])
    assert registers[1:].windows == (3, 2) and torch.equal(registers[1:].values_WKD, registers.values_WKD[1:])
    assert registers[::-1].windows == (2, 3, 1)
    assert torch.equal(registers[::-1].values_WKD, registers.values_WKD[[4, 5, 1, 2, 3, 0]])
    assert len(registers[3:]) == 0 and registers[3:].values_WKD.shape == (0, 4, 9)
    assert [part.windows for part in registers] == [(1,), (3,), (2,)]
    for text in (3, -4):
        with pytest.raises(IndexError, match=f"text {text} of 3"):
            registers[text]


def test_first_registers() -> None:
    registers = three_texts()
    assert torch.equal(registers.first(2).values_WKD, registers.values_WKD[:, :2])
    assert registers.first(4).first(1).k == 1
    for k in (0, 5, -1, 2.5):
        with pytest.raises(CrocodilError, match=f"between 1 and the 4 registers at hand, not {k}"):
            registers.first(k)


def test_mixtures() -> None:
    a, b = three_texts(0), three_texts(1)
    assert torch.allclose(a.mix(b, 0.0).values_WKD, a.values_WKD)
    assert torch.allclose(a.mix(b, 1.0).values_WKD, b.values_WKD)
    assert torch.allclose(a.mix(b, 0.3).values_WKD.norm(dim=-1), torch.tensor(3.0))
    assert a.mix(b, 0.3).windows == a.windows
    for other, message in (
        (replace(b, encoder="another"), "registers of two encoders cannot be mixed"),
        (b.first(2), r"shapes \(6, 4, 9\) and \(6, 2, 9\)"),
        (replace(b, windows=(2, 2, 2)), "as many windows"),
    ):
        with pytest.raises(CrocodilError, match=message):
            a.mix(other, 0.5)
    with pytest.raises(CrocodilError, match="not with str"):
        a.mix("b", 0.5)  # type: ignore[arg-type]
    antipode = replace(a, values_WKD=-a.values_WKD)
    for alpha, other in ((0.5, antipode), (1e300, b), (float("nan"), b)):
        with pytest.raises(CrocodilError, match="has no direction"):
            a.mix(other, alpha)
    assert torch.allclose(a.mix(b, 1e30).values_WKD.norm(dim=-1), torch.tensor(3.0))


def test_normalised_brings_registers_back_to_sqrt_d() -> None:
    registers = three_texts()
    stretched = replace(registers, values_WKD=registers.values_WKD * 7)
    assert torch.allclose(stretched.normalised().values_WKD, registers.values_WKD)
    with pytest.raises(CrocodilError, match="norm 0 has no direction"):
        replace(registers, values_WKD=registers.values_WKD * 0).normalised()


def test_concatenate_is_the_inverse_of_taking_out() -> None:
    registers = three_texts()
    again = concatenate([registers[0], registers[1:]])
    assert torch.equal(again.values_WKD, registers.values_WKD) and again.windows == registers.windows
    with pytest.raises(CrocodilError, match="cannot be put together"):
        concatenate([registers, registers.first(1)])
    with pytest.raises(CrocodilError, match="no registers"):
        concatenate([])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_are_refused(bad: float) -> None:
    values = three_texts().values_WKD.clone()
    values[2, 1, 3] = bad
    with pytest.raises(CrocodilError, match="NaN or infinity"):
        Registers(values, (1, 3, 2), "an encoder")


@pytest.mark.parametrize(
    ("values", "windows", "message"),
    [
        (torch.ones(2, 3), (2,), r"shape \(windows, K, D\), not \(2, 3\)"),
        ([[1.0]], (1,), "not list"),
        (torch.ones(2, 3, 4), (1,), "hold 2 windows"),
        (torch.ones(2, 3, 4), (3, -1), "every window belongs to one text"),
        (torch.ones(2, 3, 4), (2, 0), "every window belongs to one text"),
        (torch.ones(2, 3, 4, dtype=torch.int64), (2,), "16 bits or more, not torch.int64"),
        (torch.ones(2, 3, 4).to(torch.float8_e4m3fn), (2,), "16 bits or more, not torch.float8_e4m3fn"),
        (torch.full((2, 3, 4), 1e300, dtype=torch.float64), (2,), "NaN or infinity"),
        (torch.ones(2, 3, 4), (1.0, 1.0), "every window belongs to one text"),
        (torch.ones(2, 3, 4), None, "in a tuple"),
    ],
)
def test_other_shapes_are_refused(values: object, windows: tuple[int, ...], message: str) -> None:
    with pytest.raises(CrocodilError, match=message):
        Registers(values, windows, "an encoder")  # type: ignore[arg-type]


def test_a_file_gives_back_the_same_registers(tmp_path: Path) -> None:
    registers = three_texts()
    file = tmp_path / "registers.safetensors"
    registers.first(3).save(file)
    registers.save(file)  # over the other one
    again = Registers.load(file)
    assert torch.equal(again.values_WKD, registers.values_WKD)
    assert (again.windows, again.encoder) == (registers.windows, registers.encoder)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_failed_save_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "registers.safetensors"
    three_texts(0).save(file)
    before = file.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        three_texts(1).save(file)
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_link_stays_a_link_and_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "registers.safetensors", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(target)
    three_texts().save(link)
    assert link.is_symlink() and len(Registers.load(target)) == 3
    os.mkfifo(pipe)
    for place in (pipe, tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            three_texts().save(place)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


class Canary:
    def __reduce__(self) -> tuple:
        return (exec, ("raise AssertionError('a pickle was opened')",))


def spoiled(fault: str, file: Path) -> None:
    registers = three_texts()
    registers.save(file)
    about = {"format": "crocodil-registers-1", "encoder": "e", "windows": "[1, 3, 2]"}
    values = {"values": registers.values_WKD}
    if fault == "missing":
        file.unlink()
    elif fault == "truncated":
        file.write_bytes(file.read_bytes()[:-40])
    elif fault == "empty":
        file.write_bytes(b"")
    elif fault == "pickle":
        file.write_bytes(pickle.dumps(Canary()))
    elif fault == "other tensors":
        save_file({"weight": torch.ones(2)}, file)
    elif fault == "more tensors":
        save_file(values | {"weight": torch.ones(2)}, file, about)
    elif fault == "no windows":
        save_file(values, file, {key: about[key] for key in ("format", "encoder")})
    elif fault == "windows that are none":
        save_file(values, file, about | {"windows": "7"})
    elif fault == "NaN":
        save_file({"values": registers.values_WKD * float("nan")}, file, about)
    elif fault == "a window too few":
        save_file(values, file, about | {"windows": "[1, 3]"})


@pytest.mark.parametrize(
    "fault",
    [
        "missing",
        "truncated",
        "empty",
        "pickle",
        "other tensors",
        "more tensors",
        "no windows",
        "windows that are none",
        "NaN",
        "a window too few",
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_names_it(fault: str, tmp_path: Path) -> None:
    file = tmp_path / "registers.safetensors"
    spoiled(fault, file)
    with pytest.raises(CrocodilError) as error:
        Registers.load(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
