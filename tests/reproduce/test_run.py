"""Every figure runs on a tiny model; what was interrupted goes on; what is drawn is what was measured."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from crocodil.errors import CrocodilError
from crocodil.reproduce import markdown
from crocodil.reproduce.config import Ablations, ReproduceConfig, preset
from crocodil.reproduce.draw import draw
from crocodil.reproduce.figure import Figure, Line
from crocodil.reproduce.figures import FIGURES
from crocodil.reproduce.lab import Lab
from crocodil.reproduce.pages import write
from crocodil.reproduce.result import Result, from_json, to_json
from crocodil.reproduce.run import reproduce
from crocodil.reproduce.store import Measured

NAMES = list(FIGURES)


@pytest.fixture
def measure(make_lab: Callable[..., Lab]) -> Callable[..., Result]:
    """`measure("fig4", **lab)`: one figure of the tiny model."""

    def run(name: str, **options: object) -> Result:
        results = reproduce(make_lab(**options), [FIGURES[name]], "tiny")
        assert results is not None
        return results[0]

    return run


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_measured_drawn_and_written(
    name: str, measure: Callable[..., Result], cadd_lab: Lab
) -> None:
    if name.startswith("cadd-"):
        (result,) = reproduce(cadd_lab, [FIGURES[name]], "tiny") or ()
    else:
        result = measure(name)
    assert result.rows and not result.missing
    columns = {column.name for column in result.columns}
    for row in result.rows:
        assert list(row.labels) == result.labels
        assert set(row.values) <= columns and set(row.paper) <= columns
        for one in row.values.values():
            assert one.low is None or one.high is None or one.low <= one.high
    assert all(any(column.name in row.values for row in result.rows) for column in result.columns)
    assert all(set(quote.values) <= columns for quote in result.quotes)
    assert not any(verdict.startswith("No verdict") for verdict in result.verdicts)
    text = to_json(result)
    assert to_json(from_json(text)) == text
    pictures = draw(result)
    assert [picture.title for picture in pictures] == result.pictures()
    assert len(pictures) == len(result.charts) + len(result.sheets)
    for picture in pictures:
        ET.fromstring(picture.svg)
        assert picture.png.startswith(b"\x89PNG")
    assert markdown.section(result, []).startswith(f"## {result.place}: ")


def test_the_same_result_is_drawn_the_same(measure: Callable[..., Result]) -> None:
    result = measure("fig4")
    assert draw(result) == draw(from_json(to_json(result)))


def test_what_was_interrupted_goes_on(make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that dies in the middle keeps what it has; the next does the rest, and the numbers are the same."""
    figure = FIGURES["fig4"]
    whole = reproduce(make_lab(folder=Path(make_lab().store.folder.parent / "other")), [figure], "tiny")
    done: list[str] = []
    real = Lab.result

    def dies(self: Lab, task: object) -> object:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(self.key(task))  # type: ignore[arg-type]
        return real(self, task)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Lab, "result", dies)
        with pytest.raises(KeyboardInterrupt):
            reproduce(make_lab(), [figure], "tiny")
    told: list[tuple[float, float]] = []
    again = reproduce(make_lab(), [figure], "tiny", lambda what, at, total: told.append((at, total)))
    lines = figure.lines(make_lab())
    pieces = sum(len(line.tasks) for line in lines)
    assert len(done) == 5 and len(told) == pieces - 5 + 1
    assert whole and again and [row.values for row in whole[0].rows] == [row.values for row in again[0].rows]


def test_two_processes_share_the_work(make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second does its half and leaves; the first does the other and has all numbers."""
    figures = [FIGURES["fig9"]]
    lab = make_lab()
    pieces = {lab.key(task) for line in figures[0].lines(lab) for task in line.tasks}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert reproduce(lab, figures, "tiny") is None
    half = sum(key in lab.store for key in pieces)
    assert half == len(pieces) // 2
    monkeypatch.setenv("RANK", "0")
    # what is left is dealt anew, and half of it belongs to a process that is not there: it is waited for
    told: list[str] = []

    def helps(what: str, done: float, total: float) -> None:
        told.append(what)
        if what.startswith("waiting"):
            monkeypatch.setenv("RANK", "1")
            reproduce(make_lab(), figures, "tiny")
            monkeypatch.setenv("RANK", "0")
            for line in figures[0].lines(lab):
                for task in line.tasks:
                    lab.result(task)

    results = reproduce(make_lab(), figures, "tiny", helps)
    assert results is not None and all(row.values for row in results[0].rows)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fig7", "corruption.register_noise.cosine=1"),
        ("fig11", "largest_offset=0"),
        ("appendix-c", "corruption.nested_dropout.draw=off"),
    ],
)
def test_what_is_left_out_names_the_recipe_that_trains_it(
    name: str, says: str, measure: Callable[..., Result], config: ReproduceConfig
) -> None:
    result = measure(name, config=replace(config, ablations=Ablations()))
    assert any(says in line and "accelerate launch recipes/" in line for line in result.missing)


@pytest.mark.parametrize("name", ["fig6", "fig9", "fig11", "fig12", "prdc", "examples"])
def test_without_denoisers_what_needs_none_is_measured(name: str, measure: Callable[..., Result]) -> None:
    result = measure(name, denoisers=False)
    if name != "examples":
        assert any("denoiser" in line for line in result.missing)
    methods = {row.labels.get("method") or row.labels.get("setting") for row in result.rows}
    assert "conthendisc" not in methods
    if name in ("fig6", "fig12"):
        assert "mdm" in methods
    markdown.section(result, [])


def test_the_paper_s_configuration_is_the_default() -> None:
    config = preset("paper")
    assert (config.fig4.windows, config.fig8.pairs, config.prdc.samples) == (1000, 1000, 5000)
    assert (config.table1.length, config.table2.length) == (256, 512)
    assert (config.fig6.lengths, config.fig6.ks) == ((512, 1024), (8, 16))
    nano = preset("nano", ("fig4.windows=3",))
    assert nano.judge == "bundled/judge" and nano.fig4.windows == 3


def test_a_preset_that_is_none_is_refused() -> None:
    with pytest.raises(CrocodilError, match="mano"):
        preset("mano")
    with pytest.raises(CrocodilError, match=r"fig4\.window.*fig4\.windows"):
        preset("nano", ("fig4.window=3",))


def test_sizes_that_do_not_match_are_refused(make_lab: Callable[..., Lab], config: ReproduceConfig) -> None:
    uneven = replace(config, fig6=replace(config.fig6, ks=(2,)))
    with pytest.raises(CrocodilError, match="must be as many"):
        FIGURES["fig6"].lines(make_lab(config=uneven))


def test_everything_is_left_behind(make_lab: Callable[..., Lab], tmp_path: Path) -> None:
    chosen = [FIGURES[name] for name in ("fig4", "appendix-b")]
    results = reproduce(make_lab(), chosen, "tiny")
    assert results is not None
    page = write(tmp_path / "out", results, str(tmp_path / "docs.md"))
    there = {file.name for file in (tmp_path / "out").iterdir()}
    assert page.name == "index.html"
    assert there == {f"{n}.{k}" for n in ("fig4", "appendix-b") for k in ("json", "md", "svg", "png")} | {
        page.name
    }
    text = (tmp_path / "docs.md").read_text("utf-8")
    for result in results:
        assert f"## {result.place}" in text and (tmp_path / "docs" / f"{result.name}.png").is_file()
        kept = from_json((tmp_path / "docs" / f"{result.name}.json").read_text("utf-8"))
        assert kept.rows == result.rows or to_json(kept) == to_json(result)
    record = json.loads((tmp_path / "out" / "fig4.json").read_text("utf-8"))["provenance"]
    for name in ("config_hash", "versions", "seed", "device", "seconds", "model_digest", "texts_digest"):
        assert record[name] not in (None, ""), name


def test_figures_share_what_they_have_in_common(make_lab: Callable[..., Lab]) -> None:
    """The texts of ConThenDisc at 8 registers are written once for three figures."""
    lab = make_lab()

    def keys(figure: Figure) -> set[str]:
        lines: Sequence[Line] = figure.lines(lab)
        return {lab.key(task) for line in lines for task in line.tasks}

    assert keys(FIGURES["fig11"]) & keys(FIGURES["fig12"])
    assert keys(FIGURES["table1"]).isdisjoint(keys(FIGURES["fig4"]))


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_without_numbers_says_so(
    name: str,
    make_lab: Callable[..., Lab],
    config: ReproduceConfig,
    cadd_config: ReproduceConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Texts without a token, levels without a mask: nothing to say, and nothing lost."""
    figure = FIGURES[name]

    def nothing(lab: Lab, line: Line) -> dict[str, object]:
        if line.labels == figure.lines(lab)[0].labels:
            raise CrocodilError("there is nothing to divide by")
        return {}

    bare = replace(figure, values=nothing)
    monkeypatch.setattr(
        "crocodil.reproduce.lab.Lab.result",
        lambda self, task: Measured({"texts": [], "references": [], "cer": []}),
    )
    monkeypatch.setattr("crocodil.reproduce.store.Store.__contains__", lambda self, key: True)
    models = cadd_config if name.startswith("cadd-") else config
    results = reproduce(make_lab(config=models), [bare], "tiny")
    assert results is not None and not results[0].verdicts
    assert any("nothing to divide by" in line for line in results[0].missing)
    assert draw(results[0]) == []
    markdown.render(results, {})


def test_one_number_that_is_missing_costs_a_verdict_and_no_more(make_lab: Callable[..., Lab]) -> None:
    figure = FIGURES["fig12"]

    def without(lab: Lab, line: Line) -> dict[str, object]:
        return {name: one for name, one in figure.values(lab, line).items() if name != "mauve"}

    results = reproduce(make_lab(), [replace(figure, values=without)], "tiny")
    assert results is not None and results[0].verdicts == ["No verdict: mauve is missing in a line."]


@pytest.mark.parametrize("levels", [(1.0, 0.5), (0.5, 1.0, 0.5)])
def test_the_order_in_which_numbers_are_asked_for_does_not_matter(
    levels: tuple[float, ...], make_lab: Callable[..., Lab], config: ReproduceConfig
) -> None:
    asked = replace(config, fig4=replace(config.fig4, levels=levels))
    lines = FIGURES["fig4"].lines(make_lab(config=asked))
    assert [line.labels for line in lines] == [line.labels for line in FIGURES["fig4"].lines(make_lab())]


def test_one_level_alone_gives_no_verdict_on_levels(
    measure: Callable[..., Result], config: ReproduceConfig
) -> None:
    result = measure("fig4", config=replace(config, fig4=replace(config.fig4, levels=(1.0,), ks=(4,))))
    assert len(result.rows) == 1 and not result.verdicts


def test_windows_that_are_not_there_are_told(measure: Callable[..., Result], config: ReproduceConfig) -> None:
    result = measure(
        "fig4",
        config=replace(config, fig4=replace(config.fig4, windows=10**6, levels=(1.0,), ks=(0,)), part=512),
    )
    assert any("1,000,000 windows" in line for line in result.missing)


def test_names_from_outside_stay_in_their_place(measure: Callable[..., Result]) -> None:
    result = measure("appendix-b")
    odd = replace(result.provenance, model="m`|<script>\x1b", source="s`|", overrides=["source=`x`"])
    text = markdown.render([replace(result, provenance=odd)], {})
    assert "m'/<script>" in text and "\x1b" not in text and "`x`" not in text


DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_the_docs_is_what_the_runners_wrote() -> None:
    """Rendered again from the numbers beside it, it is the same to the byte, and it has every figure."""
    kept = {file.stem: from_json(file.read_text("utf-8")) for file in (DOCS / "reproduction").glob("*.json")}
    assert set(kept) == set(FIGURES)
    results = [kept[name] for name in FIGURES]
    paths: dict[str, list[str]] = {}
    for result in results:
        stems = (
            [result.name]
            if len(result.pictures()) == 1
            else [f"{result.name}-{at}" for at in range(1, 1 + len(result.pictures()))]
        )
        paths[result.name] = [
            f"reproduction/{stem}.png" for stem in stems if (DOCS / f"reproduction/{stem}.png").is_file()
        ]
    assert markdown.render(results, paths) == (DOCS / "reproduction.md").read_text("utf-8")
    one = results[0].provenance
    for cadd in (False, True):
        some = [r.provenance for r in results if r.name.startswith("cadd-") is cadd]
        assert len({each.config_hash for each in some}) == 1 and {each.preset for each in some} == {"nano"}
    assert all(r.provenance.model_digest == one.model_digest for r in results)
