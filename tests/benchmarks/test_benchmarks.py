"""Every benchmark runs at toy size, asserts equality before it times, and reports in one shape. Never a speed."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from rich.console import Console

from crocodil.demasker.llada import LLaDA
from crocodil.registers.cache import RegisterCache
from crocodil.training import checkpoints
from crocodil.training.engine import Engine
from recipes.benchmarks import (
    encode_throughput,
    engines,
    latent_share,
    masked_loss,
    packing,
    run,
    scaling,
    stages,
    text_from_noise,
    token_draw,
    training_step,
)
from recipes.benchmarks.anchor import PLAIN, load_official
from recipes.benchmarks.harness import (
    Bench,
    Pairs,
    Row,
    Unequal,
    compare,
    exponent,
    mean_of_ratios,
    sweep,
    unrest,
)
from recipes.benchmarks.memory import peak_bytes
from recipes.benchmarks.networks import config_of, denoiser
from recipes.benchmarks.sizes import FULL, QUICK, TINY, Sizes

CPU = torch.device("cpu")
TOY = Bench(TINY, CPU, PLAIN)
ROW_KEYS = {
    "name", "measure", "value", "low", "high", "control", "floor", "aim", "at_most", "ideal", "samples", "verdict",
}  # fmt: skip


def quiet() -> Console:
    return Console(stderr=True, quiet=True)


@pytest.fixture(autouse=True)
def no_accelerator_stays() -> Iterator[None]:
    """accelerate keeps the launch for the whole process; another test may want another."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def memory_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory work is run in this process and gets a made-up size; nothing is launched."""

    def peak(job: Callable[..., Callable[[], object]], **arguments: Any) -> int:
        job(**arguments)()
        return 1000

    for module in (token_draw, masked_loss, scaling, training_step, packing, stages):
        monkeypatch.setattr(module, "peak_bytes", peak)
    monkeypatch.setattr(stages, "why_not", lambda device: "not in this test")


@pytest.mark.usefixtures("memory_here")
@pytest.mark.parametrize("name", run.BENCHMARKS)
def test_a_benchmark_reports_rows_of_one_shape(name: str) -> None:
    document = json.loads(json.dumps(run.measure([run.BENCHMARKS[name]], TOY, quiet())))

    assert document["format"] == 1 and document["sizes"] == "tiny"
    assert document["machine"]["threads"] == torch.get_num_threads()
    assert set(document["calibration"]) == {"gemm_gflops", "memcpy_gb_per_second"}
    (benchmark,) = document["benchmarks"]
    assert benchmark["error"] is None
    assert benchmark["id"] == name and benchmark["equality"] and benchmark["anchor"]
    assert len({(row["name"], row["measure"]) for row in benchmark["rows"]}) == len(benchmark["rows"]) > 0
    for row in benchmark["rows"]:
        assert set(row) == ROW_KEYS
        assert row["low"] <= row["value"] <= row["high"] and 1 <= row["control"] < math.inf
        assert row["verdict"] in run.STYLES
        assert all(amount > 0 for amounts in row["samples"].values() for amount in amounts)
    assert all(row["reason"] for row in benchmark["skipped"])
    assert run.table_of(document).row_count == 1 + len(benchmark["rows"]) + len(benchmark["skipped"])


def failure(name: str, bench: Bench = TOY) -> str:
    """What a benchmark says when its sides are not equal; nothing may have been timed by then."""
    (benchmark,) = run.measure([run.BENCHMARKS[name]], bench, quiet())["benchmarks"]
    assert benchmark["rows"] == []
    return str(benchmark["error"])


def test_a_sampler_that_takes_other_tokens_is_not_timed() -> None:
    def last_first(*args: Any, **kwargs: Any) -> torch.Tensor:
        return PLAIN.generate(*args, **kwargs).flip(1)

    assert failure("P1", replace(TOY, anchor=replace(PLAIN, generate=last_first))).startswith("not equal")


@pytest.mark.parametrize(
    "add_noise",
    [
        lambda logits, temperature: -logits,
        lambda logits, temperature: PLAIN.add_noise(logits, temperature and 0.5),
        lambda logits, temperature: logits,
    ],
    ids=["another token", "another temperature", "no noise"],
)
def test_a_draw_from_another_law_is_not_timed(
    add_noise: Callable[[torch.Tensor, float], torch.Tensor],
) -> None:
    assert failure("P2", replace(TOY, anchor=replace(PLAIN, add_noise=add_noise))).startswith("not equal")


def test_our_draw_is_checked_against_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = token_draw.our_draw
    monkeypatch.setattr(
        token_draw, "our_draw", lambda logits, t, u, mask_id: draw(1.1 * logits, t, u, mask_id)
    )

    with pytest.raises(Unequal, match="inverse-CDF"):
        token_draw.check_inversion(token_draw.logits_of(1, 1536, CPU)[0], 1.0, 2000)


def test_a_loss_that_is_a_little_off_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = masked_loss.cross_entropy
    monkeypatch.setattr(
        masked_loss, "cross_entropy", lambda h, w, y, weights: right(h, w, y, 1.0001 * weights)
    )

    assert failure("P5").startswith("not equal")


def test_embeddings_of_other_texts_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    check = encode_throughput.assert_close
    monkeypatch.setattr(
        encode_throughput, "assert_close", lambda what, a, b, **k: check(what, a, b.roll(1, 0), **k)
    )

    assert failure("P8").startswith("not equal")


@pytest.mark.parametrize(
    ("name", "value"), [("OURS", "conthendisc"), ("BASE", "conthendisc"), ("options_of", None)]
)
def test_a_synthesis_that_leaves_work_out_is_not_timed(
    name: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    options_of = text_from_noise.options_of
    fewer = value or (lambda *asked: options_of(*asked) | {"latent_steps": 1})
    monkeypatch.setattr(text_from_noise, name, fewer)

    assert failure("P3").startswith("not equal")


def test_a_draw_of_other_registers_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    ddim = latent_share.ddim
    monkeypatch.setattr(
        latent_share, "ddim", lambda *args, steps, **options: ddim(*args, steps=steps - 1, **options)
    )

    assert failure("P4").startswith("not equal")


def test_registers_of_other_samples_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    read = RegisterCache.read
    monkeypatch.setattr(RegisterCache, "read", lambda cache, samples: read(cache, samples).roll(1, 0))

    assert failure("P9").startswith("not equal")


def test_operations_that_torch_counts_otherwise_are_not_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    count = engines.demasker_forward
    monkeypatch.setattr(engines, "demasker_forward", lambda *asked: count(*asked) + 2)

    assert failure("P6").startswith("not equal")


def test_a_step_that_takes_another_loss_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = engines.row_weights
    monkeypatch.setattr(engines, "row_weights", lambda *asked: 1.0001 * weights(*asked))

    assert failure("P6").startswith("not equal")


def test_a_step_that_moves_nothing_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "update", lambda engine: engine.optimiser.zero_grad())

    assert failure("P6").startswith("not equal")


def test_texts_that_see_padding_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = LLaDA.run
    monkeypatch.setattr(
        LLaDA, "run", lambda llada, x, angles, segments, visible=None: right(llada, x, angles, segments)
    )

    assert failure("P7").startswith("not equal")


def test_lengths_are_of_files_spread_over_all_that_are_short_enough() -> None:
    sizes = replace(TINY.packing, longest=512, shrink=8)
    few, many = (packing.lengths_of_files(replace(sizes, texts=texts)) for texts in (100, 200))

    assert many != sorted(many)
    assert 1 <= min(many) <= 5 and 480 <= max(many) <= 512
    assert sorted(few)[50] == pytest.approx(sorted(many)[100], rel=0.1)


def test_padding_is_what_a_batch_has_beyond_its_texts() -> None:
    case = packing.case_of(TINY.packing.network, 2, [3, 9, 5], batch=2, row_tokens=12, device="cpu")

    assert case.batches == [[0, 1], [2]] and sorted(map(sorted, case.rows)) == [[0, 1], [2]]
    assert case.positions() == (2 * (9 + 4) + (5 + 4), (3 + 9 + 5) + 3 * 4)


def test_a_checkpoint_that_is_not_verified_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "require_complete", lambda directory: None)

    assert "one bit turned" in failure("P11")


def test_a_checkpoint_that_leaves_a_tensor_out_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    state = Engine._state
    monkeypatch.setattr(Engine, "_state", lambda engine: list(state(engine))[1:])

    assert "is on one side only" in failure("P11")


def test_a_first_stage_that_trains_llada_too_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "Engine", lambda *asked: Engine(*asked[:4]))

    assert "in one stage only" in failure("P12")


@pytest.mark.usefixtures("memory_here")
def test_a_row_that_cannot_be_measured_says_why_and_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    document = run.measure([run.BENCHMARKS["P12"]], TOY, quiet())
    (benchmark,) = document["benchmarks"]

    assert benchmark["error"] is None
    assert benchmark["skipped"] == [{"name": stages.GATHERING, "reason": "not in this test"}]


def test_gathering_wants_deepspeed_a_compiler_and_cpu_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "CPU ranks" in str(stages.why_not(torch.device("cuda")))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert "compiler" in str(stages.why_not(CPU))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "deepspeed is not installed" in str(stages.why_not(CPU))


@pytest.mark.slow
@pytest.mark.deepspeed
def test_two_ranks_sample_the_same_gathered_once() -> None:
    if reason := stages.why_not(CPU):
        pytest.skip(reason)
    pairs = stages.launch(TOY)

    assert (len(pairs.theirs), len(pairs.ours)) == (TINY.pairs + 1, TINY.pairs)
    assert min(*pairs.theirs, *pairs.ours) > 0


@pytest.mark.slow
@pytest.mark.deepspeed
def test_a_failing_launch_says_why() -> None:
    if reason := stages.why_not(CPU):
        pytest.skip(reason)
    nobody = replace(TINY.gathering, network=replace(TINY.gathering.network, n_heads=0))
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        stages.launch(replace(TOY, sizes=replace(TINY, gathering=nobody)))


@pytest.mark.parametrize("sizes", [FULL, QUICK], ids=lambda sizes: sizes.name)
def test_the_denoiser_is_a_twentieth_of_the_demasker(sizes: Sizes) -> None:
    for part in (sizes.synthesis, sizes.latent):
        with torch.device("meta"):
            demasker = LLaDA(config_of(part.network, part.length))
            latent = denoiser(part.denoiser, part.registers[0], "meta")
        parameters = sum(parameter.numel() for parameter in demasker.parameters())
        assert latent.parameters_in_all / parameters == pytest.approx(1 / 20, rel=0.03)


def test_sides_take_turns_and_the_first_has_the_last_word() -> None:
    calls: list[str] = []
    pairs = compare(lambda: calls.append("A"), lambda: calls.append("B"), TOY)

    assert "".join(calls).endswith("ABABA")
    assert (len(pairs.theirs), len(pairs.ours)) == (TINY.pairs + 1, TINY.pairs)


def test_a_ratio_is_the_median_of_neighbours() -> None:
    row = Pairs(theirs=(2.0, 3.0, 8.0, 8.0), ours=(1.0, 1.0, 2.0)).row("x")

    assert (row.value, row.low, row.high) == (3.0, 2.0, 4.0)
    assert row.control == pytest.approx(1.5)


def test_a_part_that_is_timed_counts_for_the_whole_and_units_are_theirs() -> None:
    pairs = Pairs(theirs=(2.0, 3.0, 8.0, 8.0), ours=(1.0, 1.0, 2.0))
    whole, units = pairs.row("x", times=16), pairs.evaluations("x", 0.5, 0.3, 0.1)

    assert (whole.value, whole.low, whole.high) == (48.0, 32.0, 64.0)
    assert (units.value, units.low, units.high) == (1 / 3, 1 / 4, 1 / 2)
    assert units.at_most and units.control == whole.control == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("value", "control", "at_most", "verdict"),
    [
        (3.0, 1.0, False, "aim"),
        (1.5, 1.05, False, "floor"),
        (0.5, 1.09, False, "below"),
        (3.0, 1.2, False, "void"),
        (3.0, math.nan, False, "void"),
        (3.0, 1.0, True, "below"),
        (0.9, 1.0, True, "floor"),
    ],
)
def test_a_restless_machine_neither_passes_nor_fails(
    value: float, control: float, at_most: bool, verdict: str
) -> None:
    aim = 0.5 if at_most else 2.0
    assert Row("x", "time", value, value, value, control, 1.0, aim, at_most).verdict == verdict


def test_bursts_that_meet_both_twins_are_unrest() -> None:
    assert unrest([(1.0, 2.0), (2.0, 1.0), (1.0, 1.0), (1.0, 2.0), (2.0, 1.0)]) == pytest.approx(2.0)
    assert unrest([(1.0, 1.0), (1.0, 9.0), (1.0, 1.01)]) == pytest.approx(1.01)


def test_a_mean_is_void_when_one_of_its_rows_is() -> None:
    rows = [Row("a", "time", 1.0, 1.0, 1.0, 1.01), Row("b", "time", 4.0, 4.0, 4.0, 1.4)]
    mean = mean_of_ratios("mean", rows, 1.0, 1.5)

    assert mean.value == pytest.approx(2.0) and mean.verdict == "void"


def test_an_exponent_is_fitted_and_every_round_has_every_size() -> None:
    assert exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2.0)

    calls: list[int] = []
    sizes: Sequence[int] = (1, 2, 3)
    seconds, _ = sweep({size: lambda size=size: calls.append(size) for size in sizes}, TOY)  # type: ignore[misc]

    assert calls[-8:] == [1, 2, 2, 3] * 2
    assert {size: len(taken) for size, taken in seconds.items()} == dict.fromkeys(sizes, TINY.pairs)


def test_memory_is_measured_above_the_inputs_in_a_process_that_inherits_no_peak() -> None:
    gradient = 30_000 * 256 * 4  # of the head; the chunk's logits are small beside it
    peak = peak_bytes(
        masked_loss.job, side="ours", positions=8, d_model=256, vocab_size=30_000, share=0.5, device="cpu"
    )

    assert 0.9 * gradient < peak < 2 * gradient


def test_a_failing_memory_process_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="KeyError"):
        peak_bytes(
            masked_loss.job, side="nobody", positions=2, d_model=4, vocab_size=8, share=0.5, device="cpu"
        )


def test_the_users_own_official_file_is_what_is_timed(tmp_path: Path) -> None:
    file = tmp_path / "generate.py"
    file.write_text(
        "from recipes.benchmarks.anchor import gumbel as add_gumbel_noise\n"
        "from recipes.benchmarks.anchor import plain_generate\n"
        "calls = 0\n"
        "def generate(*args, **kwargs):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    return plain_generate(*args, **kwargs)\n"
    )
    anchor = load_official(file)
    document = run.measure([run.BENCHMARKS["P1"]], replace(TOY, anchor=anchor), quiet())

    assert document["benchmarks"][0]["error"] is None
    assert document["step_anchor"].startswith("generate.py, sha256 ")
    assert anchor.generate.__globals__["calls"] > 0  # type: ignore[attr-defined]


@pytest.mark.usefixtures("memory_here")
def test_the_command_prints_a_table_and_writes_one_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "QUICK", TINY)
    file = tmp_path / "bench.json"

    assert run.main(["p2", "--quick", "--json", str(file)]) == 0

    assert [benchmark["id"] for benchmark in json.loads(file.read_text())["benchmarks"]] == ["P2"]
    printed = capsys.readouterr()
    assert "a token and its confidence" in printed.out and "threads" in printed.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["P13"],
        ["--official", "no/such/generate.py"],
        ["--json", "no/such/folder/x.json"],
        ["--device", "tpu9"],
    ],
)
def test_bad_usage_ends_before_anything_is_measured(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(arguments) == 2

    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ")


def test_a_file_that_is_no_sampler_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in ("x = 1\n", "def generate(:\n"):
        file = tmp_path / "generate.py"
        file.write_text(content)

        assert run.main(["P1", "--official", str(file)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
