"""The figures of CADD: measured on tiny models, each number against what it must be."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from crocodil.errors import CrocodilError
from crocodil.metrics.bootstrap import Estimate
from crocodil.reproduce import cadd_paper, draw, markdown
from crocodil.reproduce.cadd_models import LABELS, TRAINS, steps_told, wanted
from crocodil.reproduce.config import CaddModels, ReproduceConfig, preset
from crocodil.reproduce.figure import AGREES, DIFFERS, Row
from crocodil.reproduce.figures import FIGURES
from crocodil.reproduce.figures.cadd_fig3 import as_good, beside
from crocodil.reproduce.lab import CADD, Lab
from crocodil.reproduce.measures import sources
from crocodil.reproduce.measures.chains import Chained, Original, alike, chains, originals
from crocodil.reproduce.measures.latents import MaskedUnderBoth, PlantedToken
from crocodil.reproduce.measures.likelihoods import likelihoods
from crocodil.reproduce.measures.masked_tokens import MaskedTokens
from crocodil.reproduce.measures.pictures import (
    DIGITS,
    HeldOutImages,
    SeenImages,
    drawn,
    in_hexadecimal,
    seen,
)
from crocodil.reproduce.measures.speed import Training, typical
from crocodil.reproduce.result import Result
from crocodil.reproduce.run import _read, reproduce

NAMES = [name for name in FIGURES if name.startswith("cadd-")]


@pytest.fixture
def lab(cadd_lab: Lab) -> Lab:
    """The one of tiny models with latents."""
    return cadd_lab


def measured(lab: Lab, name: str) -> Result:
    results = reproduce(lab, [FIGURES[name]], "tiny")
    assert results is not None
    return results[0]


def test_the_papers_findings_are_in_its_tables() -> None:
    """What figures say the paper finds is what the numbers say that it prints."""
    ahead = [models["CADD"] < models["MDLM"] for models in cadd_paper.TABLE_7.values()]
    assert (sum(ahead), len(ahead)) == (4, 7) and "4 of 7" in FIGURES["cadd-table7"].finding
    assert all(ours < theirs for ours, theirs in zip(cadd_paper.TABLE_6["CADD"], cadd_paper.TABLE_6["MDLM"], strict=True))  # type: ignore[operator]  # fmt: skip
    assert min(cadd_paper.TABLE_1.values(), key=lambda one: one.fid) == cadd_paper.TABLE_1["CADD"]
    assert max(one.inception_score or 0 for one in cadd_paper.TABLE_1.values()) == 10.04
    assert cadd_paper.TABLE_11[512] == cadd_paper.TABLE_1["CADD"].fid == cadd_paper.TABLE_9["flow"][1]
    assert cadd_paper.TABLE_10_TOKENS["CE"] == cadd_paper.TRAINING["CADD"].tokens_per_second


@pytest.mark.parametrize("name", NAMES)
def test_without_models_a_figure_says_which_lines_train_them(
    name: str, make_lab: Callable[..., Lab], cadd_config: ReproduceConfig
) -> None:
    result = measured(make_lab(config=replace(cadd_config, cadd=CaddModels())), name)
    assert not result.rows and not result.verdicts and result.missing
    for told in result.missing:
        assert (
            "cadd." in told and "`accelerate launch recipes/train_cadd.py --config recipes/configs/" in told
        )
    markdown.section(result, [])


def test_one_model_that_is_missing_costs_its_own_lines_alone(
    make_lab: Callable[..., Lab], cadd_config: ReproduceConfig
) -> None:
    models = replace(cadd_config.cadd, mdm="bundled/no_such_model")
    result = measured(make_lab(config=replace(cadd_config, cadd=models)), "cadd-fig3")
    assert {row.labels["model"] for row in result.rows} == {LABELS["cadd"], "held-out programs"}
    (told,) = result.missing
    assert "cadd.mdm is bundled/no_such_model, which is not there" in told and "latents=null" in told


def test_a_folder_that_is_wrong_is_an_error(
    make_lab: Callable[..., Lab], cadd_config: ReproduceConfig, tmp_path: Path
) -> None:
    """What the package lacks is left out; what somebody typed is not."""
    models = replace(cadd_config.cadd, mdm=str(tmp_path / "typo"))
    with pytest.raises(CrocodilError, match="typo"):
        measured(make_lab(config=replace(cadd_config, cadd=models)), "cadd-fig3")


def test_every_model_has_a_name_a_place_and_a_line_that_trains_it() -> None:
    models = vars(preset("nano").cadd)
    assert set(models) == set(LABELS) == set(TRAINS)
    for line in TRAINS.values():
        assert (Path(__file__).parents[2] / "recipes" / "configs" / line.split()[0]).is_file()
    assert all(path.startswith("bundled/") for path in models.values())
    assert len(set(models.values())) == len(models)


def test_a_model_without_latents_is_refused_before_anything_is_measured(
    make_lab: Callable[..., Lab], cadd_config: ReproduceConfig
) -> None:
    models = replace(cadd_config.cadd, cadd=cadd_config.cadd.mdm)
    for name in ("cadd-fig5", "cadd-table4"):
        with pytest.raises(CrocodilError, match="not trained with latents"):
            measured(make_lab(config=replace(cadd_config, cadd=models)), name)


@pytest.mark.parametrize("change", [{"rho": 1.0}, {"gain": 0.5}, {"schedule": "vp"}, {"fusion": "reweight"}])
def test_other_latents_over_the_same_weights_are_other_work(
    change: dict[str, Any],
    lab: Lab,
    cadd_models: dict[str, str],
    make_lab: Callable[..., Lab],
    tmp_path: Path,
) -> None:
    """Norm, gain, schedule and fusion are in no weight."""
    folder, other = Path(cadd_models["cadd"]), tmp_path / "other"
    other.mkdir()
    for one in folder.iterdir():
        (other / one.name).symlink_to(one)
    index = json.loads((folder / "config.json").read_text())
    index["latents"] |= change
    (other / "config.json").unlink()
    (other / "config.json").write_text(json.dumps(index))
    changed = make_lab(config=replace(lab.config, cadd=replace(lab.config.cadd, cadd=str(other))))
    task = chains(lab, "cadd", 2, 1)[0]
    assert lab.key(task) != changed.key(task) and lab.key(task) == lab.key(task)
    assert changed.key(chains(lab, "mdm", 2, 0)[0]) == lab.key(chains(lab, "mdm", 2, 0)[0])


def test_texts_fill_their_window_and_do_not_depend_on_their_part(lab: Lab) -> None:
    whole, *halves = (
        Chained(part, 3, 2, None, 32, 1.0, "soft", 0, 0, CADD + "cadd") for part in ((0, 4), (0, 2), (2, 4))
    )
    texts = lab.result(whole).values["texts"]
    assert texts == [text for half in halves for text in lab.result(half).values["texts"]]
    model = lab.model(CADD + "cadd")
    written = model.generate(4, method="cadd", draws=2, estimate="soft", nfe=3, length=32, min_length=32)
    assert texts == [one.text for one in written] and len(set(texts)) == 4
    assert lab.result(whole).values["nfe"] == [6] * 4


def test_without_draws_it_is_masked_diffusion(lab: Lab) -> None:
    """The same sampler on the network without its latents."""
    task = chains(lab, "cadd", 3, 0)[0].of
    options = {"method": "mdm", "draws": 0, "remasking": "ancestral", "nfe": 3, "min_length": 32}
    written = lab.model(CADD + "cadd").generate(2, **options)  # type: ignore[arg-type]
    assert lab.result(task).values["texts"] == [one.text for one in written]


def test_texts_are_compared_with_those_that_fill_a_window(lab: Lab) -> None:
    vocabulary = lab.model(CADD + "mdm").vocabulary
    samples = lab.windows(32, (0, 60), CADD + "mdm")
    texts = lab.result(Original(32, (0, 60), CADD + "mdm")).values["texts"]
    assert texts == [vocabulary.decode(one.text_ids) for one in samples if len(one.text_ids) == 30]
    assert 0 < len(texts) < 60


def test_models_of_one_vocabulary_are_compared_with_the_same_texts(lab: Lab) -> None:
    assert originals(lab, "mdm") == originals(lab, "cadd") == originals(lab, "vp")
    assert alike(lab, "vp") == CADD + "mdm" and alike(lab, "letters_cadd") == CADD + "letters_mdm"


def test_figures_share_what_they_have_in_common(lab: Lab) -> None:
    keys = {
        name: {lab.key(task) for line in FIGURES[name].lines(lab) for task in line.tasks} for name in NAMES
    }
    assert keys["cadd-fig6"] <= keys["cadd-fig3"] | keys["cadd-fig5"]
    assert keys["cadd-fig3"] <= keys["cadd-fig4"] | keys["cadd-fig5"]


def test_a_clean_latent_names_its_token_and_one_of_noise_none(lab: Lab) -> None:
    """At t near 0 the nearest row is the right one, whatever stands around; at t = 1 nothing of the token is left."""
    model = CADD + "reference"
    found = {
        (own, t): lab.result(PlantedToken(32, (0, 4), t, own, model)).values
        for own in (True, False)
        for t in (1e-3, 1.0)
    }
    for own in (True, False):
        assert found[own, 1e-3]["nearest"] == found[own, 1e-3]["planted"]
        assert found[own, 1.0]["planted"] == found[own, 1e-3]["planted"]
    for name in ("predicted", "nearest", "there", "before", "behind"):
        assert found[True, 1.0][name] == found[False, 1.0][name]
    assert found[True, 1.0]["planted"] == found[True, 1.0]["there"]
    pairs = zip(found[False, 1.0]["planted"], found[False, 1.0]["there"], strict=True)
    assert all(planted != there for planted, there in pairs)


def test_a_network_that_reads_its_latents_follows_them(
    make_lab: Callable[..., Lab], cadd_config: ReproduceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(config=cadd_config)
    augmented = lab.model(CADD + "reference").augmented
    assert augmented is not None
    oracle = lambda ids, rows, registers, z, t: z[rows] @ augmented.clean_table().T  # noqa: E731
    monkeypatch.setattr(augmented, "logits", oracle)
    values = lab.result(PlantedToken(32, (0, 4), 0.3, False, CADD + "reference")).values
    assert values["predicted"] == values["nearest"]


def test_with_neither_registers_nor_latents_it_is_the_unguided_demasker(lab: Lab) -> None:
    """As Fig. 4 of the first paper measures it, on the same masks; with registers alone it is the guided one."""
    for k in (0, 2):
        plain = lab.result(MaskedTokens(32, (0, 3), 0.5, k)).values
        here = lab.result(MaskedUnderBoth(32, (0, 3), 0.5, k, False, CADD + "both")).values
        assert here["masked"] == plain["masked"]
        assert here["nats"] == pytest.approx(plain["nats"], rel=1e-5)
        seen = lab.result(MaskedUnderBoth(32, (0, 3), 0.5, k, True, CADD + "both")).values
        assert seen["masked"] == plain["masked"] and seen["nats"] != pytest.approx(plain["nats"], rel=1e-5)


def test_a_model_of_the_same_registers_has_the_same_denoisers(lab: Lab) -> None:
    """The encoder was frozen, so denoisers of the model that is reproduced fit."""
    model = lab.model(CADD + "both")
    assert model.denoisers.unconditional is not None
    assert model.given_denoisers == lab.model("model").given_denoisers


def test_nats_are_of_the_text_alone_and_of_each_by_itself(lab: Lab) -> None:
    whole = likelihoods(lab, "cadd", "programs", 4, 2, 4)
    assert [task.part for task in whole] == [(0, 2), (2, 4)]
    joined = lab.result(replace(whole[0], part=(0, 4))).values
    for name, values in joined.items():
        parts = [one for task in whole for one in lab.result(task).values[name]]
        assert values == pytest.approx(parts, rel=1e-4), name
    assert joined["tokens"] == [30] * 4 and all(nats > 0 for nats in joined["latents"])
    assert all(bound > latents for bound, latents in zip(joined["bound"], joined["latents"], strict=True))
    plain = lab.result(likelihoods(lab, "mdm", "programs", 4, 2, 4)[0]).values
    assert plain["latents"] == [0, 0]
    letters = lab.result(likelihoods(lab, "letters_mdm", "letters", 4, 2, 4)[0]).values
    assert letters["characters"] == letters["tokens"] == [30, 30]


def test_a_network_that_knows_nothing_costs_the_logarithm_of_its_vocabulary(
    make_lab: Callable[..., Lab], cadd_config: ReproduceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of letters: log₂ 29 bits, as the mask token is never said, in both numbers of masked diffusion."""
    lab = make_lab(config=cadd_config)
    model = lab.model(CADD + "letters_mdm")
    even = lambda ids, rows, registers: torch.zeros(int(rows.sum()), model.vocabulary.size)  # noqa: E731
    monkeypatch.setattr(model.demasker, "logits", even)
    (task, *_) = likelihoods(lab, "letters_mdm", "letters", 2, 64, 8)
    values = lab.result(task).values
    assert values["discrete"] == pytest.approx([30 * math.log(29)] * 2, rel=0.15)
    assert values["bound"] == pytest.approx([30 * math.log(29)] * 2, rel=0.15)


@pytest.mark.parametrize("name", ["cadd-table5", "cadd-table7"])
def test_what_is_more_than_masked_diffusion_s_is_the_difference(name: str, lab: Lab) -> None:
    result = measured(lab, name)
    for source in {row.labels["source"] for row in result.rows}:
        mdm, cadd = (row.values for row in result.rows if row.labels["source"] == source)
        assert "discrete_more" not in mdm
        for what in ("discrete", "bound"):
            a, b, more = mdm[what].value, cadd[what].value, cadd[f"{what}_more"].value
            perplexity = (name, what) == ("cadd-table7", "discrete")
            assert more == pytest.approx(b / a if perplexity else b - a)


@pytest.mark.parametrize(
    ("mdm", "cadd", "leads"),
    [(1.40, 1.35, AGREES), (2.6, 1.4, DIFFERS), (1.40, 1.45, DIFFERS), (1.4, 1.4, "Not to be")],
)
def test_a_discrete_term_is_as_in_the_paper_where_it_is_a_little_lower(
    mdm: float, cadd: float, leads: str, lab: Lab
) -> None:
    """Far lower is what latents give away, and no better model of texts."""

    def row(name: str, value: float) -> Row:
        one = lambda value: Estimate(value, value - 0.01, value + 0.01, 9)  # noqa: E731
        values = {"discrete": one(value), "discrete_more": one(value - mdm), "bound": one(value)}
        return Row({"source": "letters", "model": LABELS[name]}, values)

    told, *_ = FIGURES["cadd-table5"].verdicts(lab, [row("letters_mdm", mdm), row("letters_cadd", cadd)])
    assert told.startswith(leads) and ("the order is the paper's" in told) is (cadd == 1.4 < mdm - 1)


def test_what_cadd_is_measured_with_is_no_matter_to_the_first_paper(lab: Lab) -> None:
    """So that a change of it leaves the numbers and the configuration of the first paper's figures as they are."""
    changed = replace(lab.config, chains=replace(lab.config.chains, texts=7))
    first, second = FIGURES["fig4"], FIGURES["cadd-fig3"]
    assert _read(first, changed) == _read(first, lab.config) and "fig4" in _read(first, changed)
    assert _read(second, changed) != _read(second, lab.config)


@pytest.mark.parametrize("kind", [name for name in sources.KINDS])
def test_every_installation_has_every_kind_of_text(kind: str) -> None:
    texts = sources.documents(kind, "bundled")
    assert sum(len(one.text) for one in texts) > 20_000 and all(one.text.strip() for one in texts)
    assert texts == sources.documents(kind, "bundled")


def test_comments_are_what_is_said_and_not_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    program = 'x = "no"  # yes\ndef f():\n    """Do\n    it.\n    """\n    return (\n'
    documents = (type(sources.documents("programs", "bundled")[0])("one", program),)
    monkeypatch.setattr(sources, "held_out_documents", lambda name: documents)
    assert [one.text for one in sources.documents("comments", "bundled")] == ["yes\nDo\nit."]


def test_a_corpus_is_a_source_too(tmp_path: Path, lab: Lab) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "so it is\n" * 100}) + "\n")
    (task, *_) = likelihoods(lab, "cadd", str(tmp_path / "one.jsonl"), 2, 1, 2)
    assert lab.result(task).values["tokens"] == [30, 30]
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "so it was\n" * 100}) + "\n")
    sources.windows.cache_clear()
    assert likelihoods(lab, "cadd", str(tmp_path / "one.jsonl"), 2, 1, 2)[0].digest != task.digest


def test_timing_trains_a_copy_and_counts_bytes(lab: Lab) -> None:
    before = {name: x.clone() for name, x in lab.model(CADD + "cadd").augmented.state_dict().items()}  # type: ignore[union-attr]
    values = lab.result(Training(2, 32, 3, 0, CADD + "cadd")).values
    after = lab.model(CADD + "cadd").augmented.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    assert all(len(times) == 3 and min(times) > 0 for times in values["seconds"].values())
    most = values["bytes"]
    assert most["MDM"] == most["MDM again"] < most["CADD"] <= most["CADD, soft squared error"]


def test_more_draws_take_more_memory(lab: Lab) -> None:
    rows = {
        row.labels["setting"]: row.values
        for row in measured(lab, "cadd-table4").rows
        if row.labels["of"] == "sampling"
    }
    sizes = [rows[name]["memory"].value for name in ("MDM", "K = 1", "K = 2")]
    assert sizes[0] < sizes[1] < sizes[2]
    assert rows["K = 1"]["time"] == Estimate(1.0, 1.0, 1.0, 3)


def test_a_median_and_its_interval() -> None:
    assert typical([1.0, 9.0, 2.0]).value == 2.0
    assert typical([2.0, 4.0, 9.0], [1.0, 2.0, 3.0], 10.0).value == 20.0
    one = typical([float(at) for at in range(1, 102)])
    assert one.value == 51 and one.low is not None and one.high is not None and one.n == 101
    # a median's standard error is about 1.25 that of a mean: 1.25 · 29.2 / √101 = 3.6
    assert one.low == pytest.approx(51 - 2 * 3.6, abs=4) and one.high == pytest.approx(51 + 2 * 3.6, abs=4)


def test_images_do_not_depend_on_their_part(lab: Lab) -> None:
    (first, *_) = drawn(lab, "digits_cadd", 2)
    whole = lab.result(replace(first, part=(0, 4))).tensors["ids_BN"]
    halves = [lab.result(replace(first, part=part)).tensors["ids_BN"] for part in ((0, 2), (2, 4))]
    assert torch.equal(whole, torch.cat(halves)) and int(whole.max()) < DIGITS.V
    assert drawn(lab, "digits_mdm", 2)[0].digest != first.digest


def test_real_digits_are_nearer_and_surer_than_noise(lab: Lab) -> None:
    real, noise = seen(lab, [HeldOutImages()]), seen(lab, drawn(lab, "digits_mdm", 2))
    assert real["fid"].value < 0.2 * noise["fid"].value
    assert real["inception_score"].value > 2 * noise["inception_score"].value
    for one in (*real.values(), *noise.values()):
        assert one.low is not None and one.high is not None and one.low <= one.value <= one.high


def test_digits_are_shown_as_they_are(lab: Lab) -> None:
    """Black is the highest level; a picture shows held-out digits, then those of each model at the most evaluations."""
    ids = torch.zeros(2, 64, dtype=torch.uint8)
    ids[0, :8], ids[1, 63] = 16, 8
    assert in_hexadecimal(ids) == ["ff" * 8 + "00" * 56, "00" * 63 + "80"]
    (sheet,) = measured(lab, "cadd-table1").sheets
    assert list(sheet.names) == [
        "held-out digits",
        "MDM, digits, NFE 4",
        "CADD, digits, hard, NFE 4",
        "CADD, digits, soft, NFE 4",
    ]
    first = drawn(lab, "digits_cadd", 4)[0]
    assert list(sheet.rows[2]) == in_hexadecimal(lab.result(first).tensors["ids_BN"])
    assert {len(image) for row in sheet.rows for image in row} == {2 * 64} and sheet.width == 8


def test_digits_of_training_are_nearer_to_themselves_than_any_others(lab: Lab) -> None:
    some, real = seen(lab, [SeenImages(200)]), seen(lab, [HeldOutImages()])
    assert len(lab.result(SeenImages(200)).tensors["ids_BN"]) == 200
    assert (
        some["fid"].value < real["fid"].value
        and some["inception_score"].value > real["inception_score"].value
    )


def rows_of(**curves: list[tuple[float, float]]) -> list[Row]:
    """Curves of (MAUVE, half of its interval); Gen-PPL is its opposite."""
    one = lambda value, half: Estimate(value, value - half, value + half, 9)  # noqa: E731
    return [
        Row({"model": name, "T": 2**at}, {"mauve": one(value, half), "gen_ppl": one(-value, half)})
        for name, curve in curves.items()
        for at, (value, half) in enumerate(curve)
    ]


@pytest.mark.parametrize("column", ["mauve", "gen_ppl"])
def test_one_curve_beside_another(column: str) -> None:
    """What lies outside of the intervals decides; where nothing does, nothing is told."""

    def told(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> str:
        return beside(rows_of(a=a, b=b), column, {"model": "a"}, {"model": "b"}, "T") or ""

    low, high = [(0.3, 0.1), (0.4, 0.1)], [(0.6, 0.1), (0.45, 0.1)]
    assert told(high, low).startswith(AGREES) and told(low, high).startswith(DIFFERS)
    assert "at 2 of 2 T beside b" in told(high, low) and "1 speak for it and 0 against" in told(high, low)
    assert "at 0 of 2 T beside b" in told(low, high) and "0 speak for it and 1 against" in told(low, high)
    assert told([(0.45, 0.1)], [(0.4, 0.1)]).startswith("Not to be told")
    # one clear point of four does not speak for the others, one against it does
    ahead, behind = (0.9, 0.01), (0.4, 0.01)
    rest = [(0.5, 0.1)] * 3
    assert told([ahead, *rest], [behind, *rest]).startswith("Not to be told")
    assert told([behind, *rest], [ahead, *rest]).startswith(DIFFERS)
    assert beside(rows_of(a=low), column, {"model": "a"}, {"model": "b"}, "T") is None


def test_alike_is_said_only_of_what_is_narrow_enough_to_tell() -> None:
    wide, narrow, other = (rows_of(a=[one])[0] for one in ((0.5, 0.2), (0.5, 0.02), (0.6, 0.02)))
    assert (as_good("a", narrow, "b", narrow) or "").startswith(AGREES)
    assert (as_good("a", narrow, "b", other) or "").startswith(DIFFERS)
    assert (as_good("a", wide, "b", narrow) or "").startswith("Not to be told")
    assert as_good("a", wide, "b", None) is None


def test_what_models_were_trained_for_is_read_from_their_folders(lab: Lab) -> None:
    (told,) = steps_told(lab, ("mdm", "cadd", "both"))
    assert told == "Training: MDM 100 steps of 4 texts; CADD 101 steps of 4 texts."
    assert wanted(lab, ("mdm", "cadd")) == []


def test_what_is_predicted_is_shown_by_noise(lab: Lab) -> None:
    (passage,) = measured(lab, "cadd-table12").passages
    first, second, *rest = passage.text.split("\n")
    assert first.startswith("program") and second.startswith("latent")
    assert [line[:9].strip() for line in rest if line.startswith("t = ")] == ["t = 0.1", "t = 1"]
    assert all("⟦" in line for line in (first, second))


def test_what_has_no_place_on_an_axis_is_a_line_across(lab: Lab) -> None:
    """Real texts have no number of steps: their Gen-PPL is what the curves are measured by."""
    result, ax = measured(lab, "cadd-fig3"), Figure().subplots()
    (column,) = (one for one in result.columns if one.name == "gen_ppl")
    draw._curves(ax, result.charts[0], result.rows, column)
    (real,) = (row for row in result.rows if row.labels["model"] == "held-out programs")
    lines = {str(line.get_label()): [float(y) for y in line.get_ydata()] for line in ax.lines}
    assert lines["held-out programs"] == [real.values["gen_ppl"].value] * 2
    assert set(lines) == {LABELS["mdm"], LABELS["cadd"], "held-out programs"}


@pytest.mark.parametrize(("name", "turned"), [("cadd-table7", True), ("cadd-table8", False)])
def test_names_of_bars_do_not_run_into_one_another(name: str, turned: bool, lab: Lab) -> None:
    result, ax = measured(lab, name), Figure(figsize=(4.1, 3.1)).subplots()
    kinds = ("programs", "comments", "manual", "descriptions", "headers", "javascript")
    rows = [replace(result.rows[0], labels={"source": kind}) for kind in kinds] if turned else result.rows
    draw._bars(ax, result.charts[0], rows, result.drawn()[0][1][0])
    assert {tick.get_rotation() != 0 for tick in ax.get_xticklabels()} == {turned}
    assert ("the paper" in ax.get_legend_handles_labels()[1]) is not turned
