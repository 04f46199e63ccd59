"""What is measured is what is meant: oracles and limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from crocodil.autoencoder import Batch
from crocodil.demasker.loss import Losses
from crocodil.metrics.bootstrap import Estimate
from crocodil.reproduce.config import ReproduceConfig
from crocodil.reproduce.figures import FIGURES, eq6
from crocodil.reproduce.lab import MAIN, Lab
from crocodil.reproduce.measures import masked_tokens, toy
from crocodil.reproduce.measures.decoding import Mixed, Reconstructed
from crocodil.reproduce.measures.judging import Judged, judged, mauve
from crocodil.reproduce.measures.masked_tokens import RevealedTokens
from crocodil.reproduce.measures.writing import written


def test_the_ends_of_a_mixture_are_the_reconstructions(make_lab: Callable[..., Lab]) -> None:
    """α = 0 is the first of each pair and α = 1 the second, as the autoencoder gives them back."""
    lab = make_lab()
    first, last = (lab.result(Mixed(32, (0, 2), 4, alpha, 4)).values for alpha in (0.0, 1.0))
    whole = lab.result(Reconstructed(32, (0, 4), 4, 32, 4)).values
    assert first["texts"] == whole["texts"][0::2] and last["texts"] == whole["texts"][1::2]
    assert first["ends"] == last["ends"] == [whole["references"][0::2], whole["references"][1::2]]
    assert first["cer_first"] == whole["cer"][0::2] and last["cer_second"] == whole["cer"][1::2]


def test_the_gap_of_two_sentences_is_log_2(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every text is one of two that differ everywhere: at once each token costs log 2, in turn only the first does."""

    def oracle(batch: Batch) -> Losses:
        parts = batch.texts.is_masked_T.split(list(batch.texts.segments.lengths))
        # nothing is seen of a text that is masked as a whole; any token tells which of the two it is
        nats = torch.tensor([math.log(2) if bool(part.all()) else 0.0 for part in parts])
        hidden = torch.tensor([float(part.sum()) for part in parts])
        return Losses(nats.sum(), torch.tensor(len(parts)), nats, nats, hidden)

    lab = make_lab()
    monkeypatch.setattr(lab.model(MAIN).autoencoder, "forward", oracle)
    monkeypatch.setattr(masked_tokens, "mask", lambda n, t, random: torch.ones(n, dtype=torch.bool))
    task = RevealedTokens(32, (0, 3), 1.0, 0, 2000)
    found = task.run(lab).values
    assert found["at_once"] == pytest.approx([0.6931] * 3, abs=1e-3)
    # the first of 32 tokens costs log 2, and the others nothing
    assert found["in_turn"] == pytest.approx([0.6931 / 32] * 3, rel=0.35)


def test_revealing_leaves_one_masked_at_least() -> None:
    whole = torch.tensor([True, False, True, True, False])
    for seed in range(50):
        left = masked_tokens._reveal(whole, torch.Generator().manual_seed(seed))
        assert 1 <= int(left.sum()) <= 3 and not bool((left & ~whole).any())
    assert not bool(masked_tokens._reveal(~whole & whole, torch.Generator()).any())


def test_the_gap_closes_where_draws_are_independent(
    make_lab: Callable[..., Lab], config: ReproduceConfig
) -> None:
    """The table's gap is the difference of its two other columns."""
    lab = make_lab()
    for line in eq6.lines(lab):
        found = eq6.values(lab, line)
        assert found["gap"].value == pytest.approx(found["at_once"].value - found["in_turn"].value)


@pytest.mark.slow
def test_independent_draws_write_impossible_pairs_and_guided_ones_do_not(
    make_lab: Callable[..., Lab],
) -> None:
    """App. B, with a trained encoder, demasker and denoiser."""
    found = toy.Pairs(2000, 300, 0).run(make_lab()).values
    share = {name: sum(drawn) / len(drawn) for name, drawn in found["impossible"].items()}
    assert share["marginals"] == pytest.approx(0.5, abs=0.04) and share["mdm"] == pytest.approx(0.5, abs=0.04)
    assert max(share["mdm in two steps"], share["autoencoder"], share["conthendisc"]) < 0.02
    assert found["gap"]["mdm"] == pytest.approx(0.693, abs=0.05) and found["gap"]["autoencoder"] < 0.02


def test_untrained_toys_draw_what_their_marginals_say() -> None:
    toys = toy.train(0)
    drawn = toy.draw(toys, "marginals", 4000, torch.Generator().manual_seed(0))
    possible = (drawn[:, None] == toy.SENTENCES).all(-1).any(-1).double().mean()
    assert float(possible) == pytest.approx(0.5, abs=0.03)
    assert set(drawn[:, 0].tolist()) == {0, 1} and set(drawn[:, 1].tolist()) == {2, 3}
    for method in toy.METHODS[1:]:
        words = toy.draw(toys, method, 8, torch.Generator().manual_seed(0))
        assert words.shape == (8, 2) and int(words.max()) < len(toy.WORDS)


def test_perplexity_and_mauve_of_texts_beside_themselves(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    tasks = [Judged(task) for task in written(lab, "mdm", 4, 32)]
    ppl, same = judged(lab, tasks)["gen_ppl"], mauve(lab, tasks, tasks)
    assert isinstance(ppl, Estimate) and ppl.low is not None and ppl.high is not None
    assert ppl.low <= ppl.value <= ppl.high and ppl.n == 3
    assert same.value == pytest.approx(1.0, abs=1e-2)


def test_the_unguided_demasker_is_told_of_no_registers(make_lab: Callable[..., Lab]) -> None:
    """So its texts are written once, whatever k the figure is about."""
    lab = make_lab()
    assert written(lab, "mdm", 4, 32, 2) == written(lab, "mdm", 4, 32, 4)
    assert written(lab, "conthendisc", 4, 32, 2) != written(lab, "conthendisc", 4, 32, 4)


def test_a_figure_of_a_model_with_fewer_registers_leaves_out_the_rest(make_lab: Callable[..., Lab]) -> None:
    ks = {line.labels["k"] for line in FIGURES["fig4"].lines(make_lab())}
    assert ks == {0, 2, 4}


def test_windows_that_are_too_few_are_all_taken(
    make_lab: Callable[..., Lab], config: ReproduceConfig
) -> None:
    lab = make_lab(replace(config, fig4=replace(config.fig4, windows=10**6)))
    line = FIGURES["fig4"].lines(lab)[0]
    assert sum(task.part[1] - task.part[0] for task in line.tasks) == len(lab.windows(32, (0, 10**6)))  # type: ignore[attr-defined]
