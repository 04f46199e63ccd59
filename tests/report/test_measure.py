"""What is measured is what the model does when it is asked directly."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from crocodil.errors import CrocodilError
from crocodil.metrics.reconstruction import cer, mean_cer
from crocodil.model import Model
from crocodil.report import measure
from crocodil.report.facts import model_facts
from crocodil.report.records import Decoding, Source
from crocodil.report.summary import summarise


@pytest.fixture(scope="module")
def sources(programs: tuple[str, ...]) -> list[Source]:
    return [Source(f"{i}.py", text) for i, text in enumerate(programs)]


def test_reconstructions_are_the_models_own(tiny_model: Model, sources: list[Source]) -> None:
    decoding = Decoding((2, 5), k=3, seed=1, temperature=1.0)
    done: list[int] = []
    encoded = measure.encode(tiny_model, sources, 3, truncate=False)
    results = measure.reconstruct(tiny_model, encoded, decoding, done.append)
    assert [(r.file, r.nfe) for r in results] == [(s.file, nfe) for s in sources for nfe in (2, 5)]
    for result in results:
        (text,) = tiny_model.autoencode(result.source, 3, nfe=result.nfe, seed=1, temperature=1.0)
        assert result.text == text and result.cer == cer(text, result.source) and result.seconds > 0
    assert sum(done) == measure.window_evaluations(encoded, decoding.nfe)


def test_a_truncated_text_is_compared_with_what_was_encoded(tiny_model: Model) -> None:
    (one,) = measure.encode(tiny_model, [Source("long.py", "side = 3 é\n" * 40)], None, truncate=True)
    assert one.registers.windows == (1,) and 0 < len(one.text) < 440
    assert ("side = 3 é\n" * 40).startswith(one.text)


def test_pieces_fit_a_window_and_are_spread_over_the_texts(tiny_model: Model, sources: list[Source]) -> None:
    pieces = measure.pieces(tiny_model, [*sources, Source("z", "zz = 1\n" * 50)], 32, 4)
    assert len(pieces) == 4 and all(pieces) and pieces[0].startswith("def area") and "zz" in pieces[-1]
    for piece in pieces:
        assert tiny_model.encode(piece).windows == (1,)
    assert measure.pieces(tiny_model, [Source("empty", "")], 32, 4) == []


def test_a_row_of_the_table_is_the_mean_over_windows(tiny_model: Model, programs: tuple[str, ...]) -> None:
    texts = list(programs[:3])
    (row,) = measure.score_grid(tiny_model, texts, [(8, 6)], Decoding((), k=2))
    written = tiny_model.decode(tiny_model.encode(texts, 2, truncate=True), nfe=6, block_size=8)
    assert (row.block_size, row.nfe, row.windows) == (8, 6, 3)
    assert row.cer == mean_cer(written, texts) and row.seconds > 0


def test_a_recorded_demasking_is_the_one_that_is_decoded(tiny_model: Model) -> None:
    text = "def area(side):\n" * 9
    (one,) = measure.encode(tiny_model, [Source("a.py", text)], None, truncate=False)
    demasking = measure.record_demasking(tiny_model, one, Decoding((8,), block_size=16), 8)
    first = tiny_model.decode(one.registers, nfe=8, block_size=16)[0]
    shown = "".join(token.text for token in demasking.tokens if token.kind == "text")
    assert first.startswith(shown) or "\ufffd" in shown
    assert len(demasking.tokens) == tiny_model.window and demasking.block_size == 16
    steps = [token.step for token in demasking.tokens]
    assert [steps.count(step) for step in range(1, 9)] == [4] * 8
    assert max(steps[:16]) == 4 and min(steps[16:]) == 5


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        (Decoding((4,), k=0), "k must be"),
        (Decoding((4,), k=5), "k must be"),
        (Decoding((4, 0)), "nfe = 0"),
        (Decoding((4, 33)), "nfe = 33"),
        (Decoding((4,), block_size=4), "8 blocks"),
        (Decoding((4,), block_size=0), "block_size = 0"),
        (Decoding((4,), length=0), "length must be"),
        (Decoding((4,), length=65), "length must be"),
        (Decoding((4,), temperature=-1.0), "temperature"),
        (Decoding((4,), temperature=float("nan")), "temperature"),
    ],
)
def test_a_rehearsal_refuses_what_the_model_would_refuse(
    tiny_model: Model, decoding: Decoding, message: str
) -> None:
    with pytest.raises(CrocodilError, match=message):
        measure.rehearse(tiny_model, decoding)


def test_a_rehearsal_lets_pass_what_the_model_does(tiny_model: Model) -> None:
    measure.rehearse(tiny_model, Decoding((1, 32), k=4, temperature=2.0), [(8, 4), (32, 1)])
    measure.rehearse(tiny_model, Decoding((40,), length=64))


def test_facts_come_from_the_model_and_its_folder(tiny_model: Model) -> None:
    facts = model_facts(tiny_model)
    assert (facts.window, facts.K, facts.D, facts.fingerprint) == (32, 4, 24, tiny_model.fingerprint)
    parameters = sum(p.numel() for p in tiny_model.autoencoder.parameters())
    assert facts.encoder_parameters + facts.demasker_parameters == parameters
    assert facts.bytes > 4 * parameters and facts.trained_steps is None


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\ntags: [a]\n---\n# A model\n", "mit"),
        ("---\ntags: [a]\n---\n", ""),
        ("# A model\n", ""),
        ("---\n: [\n---\n", ""),
        (None, ""),
    ],
)
def test_the_licence_is_what_the_card_states(
    tiny_model: Model, tmp_path: Path, card: str | None, licence: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model.name, folder)
    (folder / "README.md").unlink(missing_ok=True)
    if card is not None:
        (folder / "README.md").write_text(card, "utf-8")
    model = Model(tiny_model.autoencoder, tiny_model.vocabulary, tiny_model.window, str(folder))
    assert model_facts(model).licence == licence


def test_a_summary_has_a_line_for_each_nfe(tiny_model: Model, sources: list[Source]) -> None:
    encoded = measure.encode(tiny_model, sources, None, truncate=False)
    results = measure.reconstruct(tiny_model, encoded, Decoding((2, 4)))
    two, four = summarise(results)
    assert (two.nfe, four.nfe, two.texts) == (2, 4, len(sources))
    assert two.mean_cer == pytest.approx(sum(r.cer for r in results if r.nfe == 2) / len(sources))
