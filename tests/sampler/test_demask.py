"""The demasking loop around any `predict`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from crocodil.errors import CrocodilError
from crocodil.sampler.demask import Step, demask

MASK, VOCABULARY = 50, 64
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def oracle(text: torch.Tensor) -> Predict:
    """Certain of the right token everywhere."""
    return lambda ids, rows: torch.nn.functional.one_hot(text[rows], VOCABULARY) * 100.0


def listener(seed: int = 0) -> Predict:
    """Logits that depend on all of the row's tokens and on the position, exactly, and on no other row."""
    table = torch.randn(97, 200, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3

    def predict(ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        state = (ids * (torch.arange(ids.shape[1]) * 7 + 1)).sum(1) % 97
        row, position = rows.nonzero(as_tuple=True)
        return table[state[row], position]

    return predict


def unreachable(ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    raise AssertionError("predict was called")


def text(*shape: int) -> torch.Tensor:
    return torch.randint(0, MASK, shape, generator=torch.Generator().manual_seed(0))


def holes(text: torch.Tensor, share: float) -> torch.Tensor:
    """The text with a share of its tokens masked, anywhere."""
    return text.masked_fill(torch.rand(text.shape, generator=torch.Generator().manual_seed(1)) < share, MASK)


def seeded(rows: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(rows)]


@pytest.mark.parametrize("renoise", [False, True])
@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
def test_an_oracle_demasks_to_the_exact_text_whatever_the_steps_and_blocks(
    remasking: str, renoise: bool
) -> None:
    wanted = text(2, 12)
    for block_size in (None, 1, 2, 5, 6, 12, 99):
        for nfe in range(-(-12 // (block_size or 12)), 13):
            result = demask(
                oracle(wanted),
                torch.full((2, 12), MASK),
                MASK,
                nfe=nfe,
                block_size=block_size,
                remasking=remasking,
                renoise=renoise,
                generator=seeded(2),
            )
            assert torch.equal(result.ids, wanted)
            assert result.nfe == nfe or (renoise and result.nfe < nfe)


def test_given_tokens_are_kept_wherever_they_stand() -> None:
    given = holes(text(4, 30), 0.6)
    for renoise in (False, True):
        result = demask(listener(), given, MASK, nfe=8, block_size=6, renoise=renoise, generator=seeded(4))
        kept = given != MASK
        assert torch.equal(result.ids[kept], given[kept])
        assert (result.ids != MASK).all()
        assert torch.equal(result.steps == -1, kept)


def test_the_input_is_not_modified() -> None:
    given = holes(text(2, 10), 0.5)
    before = given.clone()
    demask(listener(), given, MASK, nfe=2)
    assert torch.equal(given, before)


def test_only_masked_positions_of_the_current_block_are_asked_for() -> None:
    given = holes(text(3, 40), 0.7)
    asked = []

    def predict(ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        assert ((ids == MASK) | ~rows).all()
        asked.append(rows)
        return listener()(ids, rows)

    result = demask(predict, given, MASK, nfe=12, block_size=8)
    rank = (given == MASK).cumsum(1) - 1
    for step, rows in enumerate(asked):
        for row in range(3):
            blocks = (rank[row][rows[row]] // 8).unique()
            assert len(blocks) <= 1
            # and what the step revealed was asked for
            assert rows[row][result.steps[row] == step].all()


@pytest.mark.parametrize("renoise", [False, True])
def test_blocks_are_finished_in_order(renoise: bool) -> None:
    x = torch.full((2, 20), MASK)
    result = demask(listener(), x, MASK, nfe=10, block_size=5, renoise=renoise, generator=seeded(2))
    last = [result.steps[:, start : start + 5].amax() for start in range(0, 20, 5)]
    first = [result.steps[:, start : start + 5].amin() for start in range(0, 20, 5)]
    assert all(a < b for a, b in zip(last, first[1:], strict=False))


def test_the_most_confident_prediction_is_revealed_first() -> None:
    sharpness = torch.tensor([1.0, 4.0, 2.0, 5.0, 3.0])
    wanted = text(1, 5)

    def predict(ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(wanted[rows], VOCABULARY) * sharpness[rows[0]][:, None]

    result = demask(predict, torch.full((1, 5), MASK), MASK, nfe=5)
    assert result.steps.tolist() == [[4, 1, 3, 0, 2]]


def test_random_remasking_only_predicts_what_it_reveals() -> None:
    rows_asked = []

    def predict(ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        rows_asked.append(int(rows.sum()))
        return listener()(ids, rows)

    generator = torch.Generator().manual_seed(0)
    result = demask(predict, torch.full((2, 12), MASK), MASK, nfe=4, remasking="random", generator=generator)
    assert rows_asked == [6, 6, 6, 6]
    assert result.steps[0].tolist() != sorted(result.steps[0].tolist())


def test_random_remasking_reveals_each_position_equally_often() -> None:
    x = torch.full((3000, 6), MASK)
    generator = torch.Generator().manual_seed(0)
    result = demask(oracle(text(3000, 6)), x, MASK, nfe=3, remasking="random", generator=generator)
    first = (result.steps == 0).float().mean(0)
    assert (first - 1 / 3).abs().max() < 0.035


def test_the_mask_is_never_predicted() -> None:
    def predict(ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        logits = listener()(ids, rows)
        logits[:, MASK] = 30.0
        return logits

    for temperature in (0.0, 1.0):
        x = torch.full((2, 9), MASK)
        result = demask(predict, x, MASK, nfe=3, temperature=temperature, generator=seeded(2))
        assert (result.ids != MASK).all()


@pytest.mark.parametrize(
    "options", [{}, {"remasking": "random"}, {"renoise": True}], ids=["confident", "random", "renoise"]
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_does_not_depend_on_its_neighbours_nor_on_its_padding(
    temperature: float, options: dict
) -> None:
    lengths = [30, 17, 24, 9]
    batch = torch.zeros(4, 30, dtype=torch.long)  # token 0 pads, and `listener` does not hear it
    for row, length in enumerate(lengths):
        batch[row, :length] = holes(text(1, length) + 0, 0.8)[0]
        batch[row, :2] = torch.tensor([3, row + 1])
    together = demask(
        listener(), batch, MASK, nfe=7, block_size=5, temperature=temperature, generator=seeded(4), **options
    )
    for row, length in enumerate(lengths):
        slots = int((batch[row] == MASK).sum())
        alone = demask(
            listener(),
            batch[row : row + 1, :length],
            MASK,
            nfe=min(7, slots),
            block_size=5,
            temperature=temperature,
            generator=[torch.Generator().manual_seed(row)],
            **options,
        )
        assert torch.equal(alone.ids[0], together.ids[row, :length])
        assert torch.equal(alone.steps[0], together.steps[row, :length])


def test_one_generator_for_a_batch_of_one_is_that_row_s_own() -> None:
    x = torch.full((1, 15), MASK)
    runs = [
        demask(listener(), x, MASK, nfe=5, temperature=1.0, generator=generator).ids
        for generator in (torch.Generator().manual_seed(3), [torch.Generator().manual_seed(3)])
    ]
    assert torch.equal(*runs)


def test_a_higher_temperature_scatters_more() -> None:
    x = torch.full((400, 1), MASK)
    logits = torch.linspace(0, 3, VOCABULARY)
    kinds = []
    for temperature in (0.0, 0.2, 1.0):
        generator = torch.Generator().manual_seed(0)
        result = demask(
            lambda ids, rows: logits.expand(int(rows.sum()), -1),
            x,
            MASK,
            nfe=1,
            temperature=temperature,
            generator=generator,
        )
        kinds.append(len(result.ids.unique()))
    assert kinds[0] == 1 < kinds[1] < kinds[2]


def test_renoise_masks_the_whole_estimate_anew_at_level_t() -> None:
    seen: list[Step] = []
    x = torch.full((4, 3000), MASK)
    x[:, :100] = 1
    wanted = text(4, 3000)
    generator = torch.Generator().manual_seed(0)
    demask(oracle(wanted), x, MASK, nfe=4, renoise=True, generator=generator, on_step=seen.append)
    levels = [float(step.is_masked_BN[:, 100:].float().mean()) for step in seen]
    assert levels == pytest.approx([0.75, 0.5, 0.25, 0.0], abs=0.02)
    # tokens that stood are masked again, and given ones never are
    assert (~seen[0].is_masked_BN & seen[1].is_masked_BN).any()
    assert not any(step.is_masked_BN[:, :100].any() for step in seen)


def test_nfe_counts_the_calls_really_made() -> None:
    found = set()
    for seed in range(20):
        calls = []

        def predict(ids: torch.Tensor, rows: torch.Tensor, calls: list = calls) -> torch.Tensor:
            assert rows.any()
            calls.append(1)
            return listener()(ids, rows)

        x = torch.full((1, 2), MASK)
        generator = torch.Generator().manual_seed(seed)
        result = demask(predict, x, MASK, nfe=2, renoise=True, generator=generator)
        assert result.nfe == len(calls)
        found.add(result.nfe)
    assert found == {1, 2}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_early_end_saves_steps_and_changes_no_text(temperature: float) -> None:
    """What is read of a row, up to its first end token, is the same; a row that never ends takes all its steps."""
    end = 7
    x = torch.full((12, 24), MASK)
    x[3, 20:] = torch.tensor([9, end, end, end])
    predict = lambda ids, rows: listener()(ids, rows) + 8.0 * (torch.arange(VOCABULARY) == end)  # noqa: E731
    options = {"nfe": 12, "temperature": temperature}
    plain = demask(predict, x, MASK, generator=seeded(12), **options)
    early = demask(predict, x, MASK, generator=seeded(12), eos_id=end, **options)
    saved = 0
    for row in range(12):
        whole, short = plain.ids[row].tolist(), early.ids[row].tolist()
        until = whole.index(end) + 1 if end in whole else 24
        assert whole[:until] == short[:until]
        assert MASK not in short
        saved += int(plain.steps[row].max() - early.steps[row].max())
    assert saved > 0 and early.nfe <= plain.nfe
    with pytest.raises(CrocodilError, match="eos_id"):
        demask(predict, x, MASK, nfe=4, renoise=True, eos_id=end)


def test_every_step_is_shown() -> None:
    seen: list[Step] = []
    result = demask(listener(), torch.full((2, 9), MASK), MASK, nfe=4, block_size=5, on_step=seen.append)
    assert [(step.number, step.total) for step in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for step in seen:
        assert torch.equal(step.is_masked_BN, result.steps >= step.number)
        assert torch.equal(step.ids_BN[~step.is_masked_BN], result.ids[~step.is_masked_BN])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nfe": 0}, "nfe = 0 is less than the 1 blocks"),
        ({"nfe": 2, "block_size": 4}, "nfe = 2 is less than the 3 blocks of 4"),
        ({"nfe": 13}, "more than the 12 positions"),
        ({"nfe": 4, "block_size": 0}, "block_size = 0"),
        ({"nfe": 4, "temperature": -0.1}, "temperature = -0.1"),
        ({"nfe": 4, "temperature": float("nan")}, "temperature = nan"),
        ({"nfe": 4, "remasking": "entropy"}, "remasking = 'entropy'"),
        ({"nfe": 4, "generator": seeded(3)}, "3 generators for 2 rows"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_before_any_prediction(options: dict, message: str) -> None:
    with pytest.raises(CrocodilError, match=message) as error:
        demask(unreachable, torch.full((2, 12), MASK), MASK, **options)
    assert "\n" not in str(error.value)


def test_a_text_without_a_mask_is_refused() -> None:
    with pytest.raises(CrocodilError, match="no position holds the mask token 50"):
        demask(unreachable, text(2, 5), MASK, nfe=1)


def test_logits_for_all_positions_are_refused() -> None:
    with pytest.raises(CrocodilError, match=r"shape \(1, 5, 64\) for 5 positions"):
        demask(lambda ids, rows: torch.zeros(1, 5, 64), torch.full((1, 5), MASK), MASK, nfe=5)
