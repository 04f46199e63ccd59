"""The engine on one rank: accumulation, resume, stages, and a gradient that is no number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

from crocodil.errors import CrocodilError
from crocodil.training.checkpoints import checkpoint_name, publishing
from crocodil.training.engine import Engine
from crocodil.training.optimisation import OptimiserConfig, learning_rate
from crocodil.training.state import open_tensors

CONFIG = OptimiserConfig(lr=1e-2, warmup_steps=3, schedule="cosine", clip_norm=0.5)
STAGE_1 = "encoder."


class Record(NamedTuple):
    total: torch.Tensor


@dataclass(frozen=True)
class Texts:
    """Stand-ins for texts: inputs and what is wanted of them."""

    x: torch.Tensor
    y: torch.Tensor

    def to(self, device: torch.device | str) -> Texts:
        return Texts(self.x.to(device), self.y.to(device))

    def __getitem__(self, part: slice) -> Texts:
        return Texts(self.x[part], self.y[part])


class Module(nn.Module):
    """Two parts, of which a first stage trains one. The loss is a sum over texts."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))
            self.demasker = nn.Linear(8, 3)

    def forward(self, texts: Texts) -> Record:
        return Record((self.demasker(self.encoder(texts.x).tanh()) - texts.y).square().sum())


def texts(step: int, count: int = 6) -> Texts:
    draws = torch.Generator().manual_seed(step)
    return Texts(torch.randn(count, 4, generator=draws), torch.randn(count, 3, generator=draws))


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def engine(accelerator: Accelerator, seed: int = 0, **options: object) -> Engine:
    return Engine(accelerator, Module(seed), CONFIG, 20, **options)  # type: ignore[arg-type]


def train(engine: Engine, steps: range, pieces: int = 1) -> list[float]:
    """Losses of these steps, each batch in so many micro-batches."""
    losses = []
    for step in steps:
        whole = texts(step)
        batches = [whole[i::pieces] for i in range(pieces)]
        losses.append(sum(record.total.item() for record in engine.accumulate(batches, 6, step)) / 6)
        engine.update()
    return losses


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in engine.module.named_parameters()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def publish(engine: Engine, run: Path, step: int, stage: int = 0) -> Path:
    with publishing(run, checkpoint_name(step)) as directory:
        engine.save(directory, {"step": step, "stage": stage})
    return run / checkpoint_name(step)


def test_it_is_adamw_with_clipping_by_the_schedule(accelerator: Accelerator) -> None:
    ours = engine(accelerator)
    oracle = Module()
    groups = [
        {"params": [p for p in oracle.parameters() if p.ndim > 1], "weight_decay": CONFIG.weight_decay},
        {"params": [p for p in oracle.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=CONFIG.lr, betas=CONFIG.betas, eps=CONFIG.eps)
    for step in range(6):
        list(ours.accumulate([texts(step)], 6, step))
        norm = ours.update().norm
        (oracle(texts(step)).total / 6).backward()
        for group in adamw.param_groups:
            group["lr"] = CONFIG.lr * learning_rate(step, CONFIG, 20)
        assert ours.rate == adamw.param_groups[0]["lr"]
        assert norm == pytest.approx(
            float(nn.utils.clip_grad_norm_(oracle.parameters(), CONFIG.clip_norm)), rel=1e-5
        )
        adamw.step()
        adamw.zero_grad()
    for name, parameter in oracle.named_parameters():
        assert torch.allclose(weights(ours)[name], parameter, atol=1e-6), name


@pytest.mark.parametrize("pieces", [2, 3, 6])
def test_micro_batches_accumulate_to_the_gradient_of_one(pieces: int, accelerator: Accelerator) -> None:
    ours = engine(accelerator)
    list(ours.accumulate([texts(0)], 6, 0))
    whole = {name: parameter.grad.clone() for name, parameter in ours.module.named_parameters()}
    ours.optimiser.zero_grad()
    list(ours.accumulate([texts(0)[i::pieces] for i in range(pieces)], 6, 0))
    for name, parameter in ours.module.named_parameters():
        assert torch.allclose(parameter.grad, whole[name], rtol=1e-5, atol=1e-7), name


def test_uneven_micro_batches_are_the_same_training(accelerator: Accelerator) -> None:
    one, many = engine(accelerator), engine(accelerator)
    assert train(many, range(5), 4) == pytest.approx(train(one, range(5)), rel=1e-5)
    assert all(
        torch.allclose(a, b, atol=1e-6)
        for a, b in zip(weights(one).values(), weights(many).values(), strict=True)
    )


def test_a_resumed_run_goes_on_bit_for_bit(accelerator: Accelerator, tmp_path: Path) -> None:
    straight = engine(accelerator, ema=0.9)
    losses = train(straight, range(7))
    first = engine(accelerator, ema=0.9)
    assert train(first, range(4)) == losses[:4]
    saved = publish(first, tmp_path, 4)
    resumed = engine(accelerator, seed=1, ema=0.9)
    resumed.load(saved)
    assert train(resumed, range(4, 7)) == losses[4:]
    assert same(weights(resumed), weights(straight))
    with resumed.averaged() as mine, straight.averaged() as other:
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), other.parameters(), strict=True))
    # and what is saved then is the same too
    assert (publish(resumed, tmp_path / "a", 7) / "state-00000-000.safetensors").read_bytes() == (
        publish(straight, tmp_path / "b", 7) / "state-00000-000.safetensors"
    ).read_bytes()


def test_loading_leaves_the_file_and_saving_leaves_the_run_alone(
    accelerator: Accelerator, tmp_path: Path
) -> None:
    straight, saving = engine(accelerator), engine(accelerator)
    losses = train(straight, range(4))
    assert train(saving, range(2)) == losses[:2]
    file = publish(saving, tmp_path, 2) / "state-00000-000.safetensors"
    before = file.read_bytes()
    resumed = engine(accelerator)
    resumed.load(file.parent)
    train(resumed, range(2, 4))
    assert file.read_bytes() == before
    assert train(saving, range(2, 4)) == losses[2:]


def test_frozen_weights_stay_bit_equal_and_stages_carry_moments_by_name(
    accelerator: Accelerator, tmp_path: Path
) -> None:
    def only_encoder(name: str) -> bool:
        return name.startswith(STAGE_1)

    def family(name: str) -> str:
        return name.partition(".")[0]

    first = engine(accelerator, trainable=only_encoder, family=family)
    before = weights(first)
    train(first, range(4))
    after = weights(first)
    for name in before:
        assert torch.equal(before[name], after[name]) != only_encoder(name), name
    saved = publish(first, tmp_path, 4, stage=0)
    first.close()
    second = Engine(accelerator, first.module, CONFIG, 20, family=family)
    second.load(saved, stage_changed=True)
    assert same(weights(second), after)
    train(second, range(4, 8))

    # the oracle: one AdamW that gets more parameters on its way
    oracle = Module()
    parts = {True: oracle.encoder, False: oracle.demasker}
    adamw = None
    for step in range(8):
        if step in (0, 4):
            groups = [
                {
                    "params": [p for p in part.parameters() if (p.ndim > 1) == decays],
                    "weight_decay": 0.1 * decays,
                }
                for part in [parts[step == 0]]
                for decays in (True, False)
            ]
            if adamw is None:
                adamw = torch.optim.AdamW(groups, betas=CONFIG.betas, eps=CONFIG.eps)
            else:
                for group in groups:
                    adamw.add_param_group(group)
        trained = [p for group in adamw.param_groups for p in group["params"]]
        adamw.zero_grad()
        (oracle(texts(step)).total / 6).backward()
        nn.utils.clip_grad_norm_(trained, CONFIG.clip_norm)
        for group in adamw.param_groups:
            group["lr"] = CONFIG.lr * learning_rate(step, CONFIG, 20)
        adamw.step()
    for name, parameter in oracle.named_parameters():
        assert torch.allclose(weights(second)[name], parameter, atol=1e-6), name


def test_every_stage_computes_in_the_precision_that_was_asked_for() -> None:
    seen = []

    class Watched(Module):
        def forward(self, texts: Texts) -> Record:
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().forward(texts)

    low = Accelerator(cpu=True, mixed_precision="bf16")
    try:
        first = Engine(low, Watched(), CONFIG, 20, trainable=lambda name: name.startswith(STAGE_1))
        train(first, range(1))
        first.close()
        train(Engine(low, first.module, CONFIG, 20), range(1))
    finally:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
    assert seen == [True, True]


def test_a_stage_does_not_resume_as_another_one(accelerator: Accelerator, tmp_path: Path) -> None:
    whole = engine(accelerator)
    train(whole, range(2))
    saved = publish(whole, tmp_path, 2, stage=1)
    part = engine(accelerator, trainable=lambda name: name.startswith(STAGE_1))
    with pytest.raises(CrocodilError, match="'demasker.*resume its own stage"):
        part.load(saved)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_skips_the_step(bad: float, accelerator: Accelerator) -> None:
    ours, control = engine(accelerator, ema=0.9), engine(accelerator, ema=0.9)
    for one in (ours, control):
        train(one, range(3))
    before = weights(ours)
    poisoned = texts(3)
    poisoned.x[2, 1] = bad
    list(ours.accumulate([poisoned[:3], poisoned[3:]], 6, 3))
    update = ours.update()
    assert not update.applied and not torch.isfinite(torch.tensor(update.norm))
    assert same(weights(ours), before)
    # neither moments nor average nor a leftover gradient remember it
    assert train(ours, range(4, 6)) == train(control, range(4, 6))
    assert same(weights(ours), weights(control))
    with ours.averaged() as mine, control.averaged() as other:
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), other.parameters(), strict=True))


def test_a_loss_above_the_ceiling_is_not_learned_from(accelerator: Accelerator) -> None:
    ours = engine(accelerator, ema=0.9)
    losses = train(ours, range(3))
    before = weights(ours)
    for ceiling, applied in ((losses[2] / 100, False), (losses[2] * 100, True)):
        list(ours.accumulate([texts(3)[:3], texts(3)[3:]], 6, 3, ceiling))
        assert ours.update().applied == applied
        assert same(weights(ours), before) != applied


def test_what_is_fixed_for_good_is_in_no_checkpoint(accelerator: Accelerator, tmp_path: Path) -> None:
    """As under adapters: it comes from where the run began."""
    of = {
        "trainable": lambda name: name.startswith(STAGE_1),
        "fixed": lambda name: not name.startswith(STAGE_1),
    }
    straight = engine(accelerator, **of)
    losses = train(straight, range(4))
    first = engine(accelerator, **of)
    train(first, range(2))
    saved = publish(first, tmp_path, 2)
    assert not [key for key in open_tensors(saved) if "demasker" in key]
    assert straight.state_bytes() == sum(12 * p.numel() for p in straight.module.encoder.parameters())
    resumed = engine(accelerator, **of)
    resumed.load(saved)
    assert train(resumed, range(2, 4)) == losses[2:]


def test_a_large_share_is_written_in_several_files(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = engine(accelerator)
    losses = train(ours, range(4))
    again = engine(accelerator)
    train(again, range(2))
    monkeypatch.setattr("crocodil.training.engine.PART_BYTES", 100)
    saved = publish(again, tmp_path, 2)
    assert len(list(saved.glob("state-00000-*.safetensors"))) > 3
    resumed = engine(accelerator, seed=1)
    resumed.load(saved)
    assert train(resumed, range(2, 4)) == losses[2:]


def test_too_large_a_micro_batch_is_one_line(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = engine(accelerator)

    def forward(texts: Texts) -> Record:
        torch.empty(1 << 60)
        raise AssertionError("not reached")

    monkeypatch.setattr(ours, "wrapped", forward)
    with pytest.raises(CrocodilError, match="step 3: a micro-batch does not fit.*row_tokens"):
        list(ours.accumulate([texts(0)], 6, 3))


def test_moments_of_eight_bits_resume_bit_for_bit(accelerator: Accelerator, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = OptimiserConfig(lr=1e-2, bits=8)

    def wide(seed: int = 0) -> Engine:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = Module()
            module.encoder = nn.Sequential(nn.Linear(4, 2048), nn.Tanh(), nn.Linear(2048, 8))  # 8,192: packed
        return Engine(accelerator, module, config, 20)

    straight = wide()
    losses = train(straight, range(6))
    first = wide()
    train(first, range(3))
    packed = first.optimiser.optimizer.state[first.module.encoder[0].weight]["state1"]
    assert packed.dtype == torch.uint8
    resumed = wide(1)
    resumed.load(publish(first, tmp_path, 3))
    assert train(resumed, range(3, 6)) == losses[3:]
    assert same(weights(resumed), weights(straight))


def test_the_average_is_lent_and_given_back(accelerator: Accelerator) -> None:
    ours = engine(accelerator, ema=0.9)
    train(ours, range(4))
    before = weights(ours)
    with pytest.raises(RuntimeError, match="in the body"), ours.averaged() as module:
        assert not module.training and not same(weights(ours), before)
        raise RuntimeError("in the body")
    assert same(weights(ours), before) and ours.module.training
    plain = engine(accelerator)
    train(plain, range(4))
    with plain.averaged() as module, plain.whole() as whole:
        assert not module.training and same(weights(plain), before) and whole is module


def test_what_begins_to_train_is_averaged_from_then_on(accelerator: Accelerator, tmp_path: Path) -> None:
    first = engine(accelerator, ema=0.9, trainable=lambda name: name.startswith(STAGE_1))
    assert set(first.ema.average) == {n for n in weights(first) if n.startswith(STAGE_1)}
    train(first, range(4))
    saved = publish(first, tmp_path, 4)
    kept = {name: tensor.clone() for name, tensor in first.ema.average.items()}
    second = engine(accelerator, seed=1, ema=0.9)
    second.load(saved, stage_changed=True)
    expected = weights(first) | kept  # the average where there is one, else the weight that was loaded
    with second.averaged() as module:
        assert same(dict(module.named_parameters()), expected)


def test_another_model_s_checkpoint_is_refused(accelerator: Accelerator, tmp_path: Path) -> None:
    ours = engine(accelerator)
    train(ours, range(1))
    saved = publish(ours, tmp_path, 1)
    other = Module()
    other.head = nn.Linear(3, 3)
    with pytest.raises(
        CrocodilError, match="'head.bias' is on one side only; the checkpoint is of another model"
    ):
        Engine(accelerator, other, CONFIG, 20).load(saved)
    with pytest.raises(CrocodilError, match="no file state-"):
        ours.load(tmp_path)
