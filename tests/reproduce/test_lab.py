"""Work is done once, whoever asks; what it depends on is in its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from crocodil.errors import CrocodilError
from crocodil.reproduce.config import ReproduceConfig
from crocodil.reproduce.lab import Lab, Task
from crocodil.reproduce.measures.decoding import Real, Reconstructed
from crocodil.reproduce.measures.judging import Compared, Judged
from crocodil.reproduce.measures.masked_tokens import MaskedTokens
from crocodil.reproduce.store import Measured, Store

DONE: list[int] = []


@dataclass(frozen=True)
class Counted(Task):
    """Notes that it was done."""

    number: int

    def run(self, lab: Lab) -> Measured:
        DONE.append(self.number)
        return Measured({"number": self.number}, {"x": torch.arange(self.number)})


def test_work_is_done_once(make_lab: Callable[..., Lab]) -> None:
    DONE.clear()
    first, second = make_lab().result(Counted(3)), make_lab().result(Counted(3))
    assert DONE == [3] and first.values == second.values == {"number": 3}
    assert torch.equal(first.tensors["x"], second.tensors["x"]) and first.seconds == second.seconds > 0


def test_a_name_is_a_function_of_all_that_a_result_depends_on(
    make_lab: Callable[..., Lab], config: ReproduceConfig
) -> None:
    lab = make_lab()
    task = MaskedTokens(32, (0, 2), 0.5, 4)
    names = {
        lab.key(task),
        lab.key(replace(task, t=0.6)),
        lab.key(replace(task, part=(0, 1))),
        lab.key(Judged(task)),
        lab.key(Compared(task)),
        make_lab(replace(config, seed=1)).key(task),
    }
    assert len(names) == 6
    assert make_lab().key(task) == lab.key(task)
    # what it does not read does not matter
    assert make_lab(replace(config, mauve_seeds=9, table1=config.table2)).key(task) == lab.key(task)


def test_other_weights_are_other_work(make_lab: Callable[..., Lab]) -> None:
    one, other = make_lab(), make_lab()
    with torch.no_grad():
        next(other.model("model").autoencoder.demasker.llada.parameters()).add_(1e-3)
        next(other.judge.model.parameters()).add_(1e-3)
    task = MaskedTokens(32, (0, 2), 0.5, 4)
    assert one.key(task) != other.key(task)
    real = Real(32, (0, 2))
    assert one.key(real) == other.key(real) and one.key(Judged(real)) != other.key(Judged(real))


def test_parts_cover_what_there_is(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    assert list(lab.parts(5)) == [(0, 2), (2, 4), (4, 5)] and list(lab.parts(0)) == []
    there = list(lab.parts(10**6, 32))
    assert there[-1][1] < 10**6 and lab.windows(32, (0, 3)) == lab.windows(32, (0, 10))[:3]


def test_a_part_is_measured_alike_whatever_its_size(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    for make in (
        lambda part: MaskedTokens(32, part, 0.5, 4, 0.5),
        lambda part: Judged(Reconstructed(32, part, 4, 16, 4)),
    ):
        whole = lab.result(make((0, 4))).values
        halves = [lab.result(make(part)).values for part in ((0, 2), (2, 4))]
        for name, values in whole.items():
            joined = halves[0][name] + halves[1][name]
            assert values == pytest.approx(joined, rel=1e-4), name


def test_a_damaged_result_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save("a", Measured({"x": 1}, {"y": torch.ones(2)}))
    assert "a" in store and "b" not in store
    (tmp_path / "a.safetensors").write_bytes(b"short")
    with pytest.raises(CrocodilError, match=r"a\.json is damaged .* delete it"):
        store.load("a")
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(CrocodilError, match="damaged"):
        store.load("a")
    for text in (
        "[",
        "[" * 100000,
        "{}",
        "null",
        '{"values": {}, "seconds": 0, "tensors": [], "digest": ""}',
    ):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(CrocodilError, match="damaged"):
            store.load("a")
    store.save("a", Measured({"x": [1.0]}))
    kept = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(kept.replace("1.0", "1.5"))
    with pytest.raises(CrocodilError, match="damaged"):
        store.load("a")


def test_an_ablation_without_a_model_is_named(make_lab: Callable[..., Lab], config: ReproduceConfig) -> None:
    lab = make_lab(replace(config, ablations=type(config.ablations)()))
    with pytest.raises(CrocodilError, match=r"ablations\.no_noise names no model"):
        lab.model("no_noise")
