"""A text while it is written, as it is noted and as a terminal shows it."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from crocodil.report.forming import Forming, at_step
from crocodil.report.live import watch
from crocodil.report.records import Token
from crocodil.sampler.demask import Step
from crocodil.text.vocabulary import Vocabulary


@pytest.fixture
def steps(tiny_vocabulary: Vocabulary) -> list[Step]:
    """`x`, given, then `=1` and the end in two steps; a second text beside it is slower."""
    v = tiny_vocabulary
    x, equals, one = (v.encode(character)[0] for character in "x=1")
    m, e = v.mask_id, v.eos_id
    windows = [[[x, m, one, m], [m] * 4], [[x, equals, one, e], [m, m, one, m]], [[x, equals, one, e]] * 2]
    made = []
    for number, window in enumerate(windows, 1):
        ids_BN = torch.tensor(window)
        made.append(Step(number, 3, ids_BN, ids_BN == m))
    return made


@pytest.fixture
def forming(tiny_vocabulary: Vocabulary) -> Forming:
    v = tiny_vocabulary
    return Forming(v, torch.tensor([*v.encode("x"), v.mask_id, v.mask_id, v.mask_id]))


def test_every_token_has_the_step_that_revealed_it(forming: Forming, steps: list[Step]) -> None:
    assert [token.step for token in forming.tokens] == [0, 1, 1, 1]
    for step in steps:
        forming.note(step)
    assert [(token.text, token.step, token.kind) for token in forming.tokens] == [
        ("x", 0, "text"), ("=", 2, "text"), ("1", 1, "text"), ("", 2, "end"),
    ]  # fmt: skip


def test_steps_of_further_batches_change_nothing(forming: Forming, steps: list[Step]) -> None:
    for step in [*steps[:2], steps[0], steps[1], steps[2]]:
        forming.note(step)
    assert forming.number == 2 and [token.step for token in forming.tokens] == [0, 2, 1, 2]


def test_a_stage_has_masks_and_nothing_behind_a_known_end() -> None:
    tokens = [
        Token("a", 1, "text"),
        Token("b", 3, "text"),
        Token("", 2, "end"),
        Token("", 1, "tail"),
        Token("", 3, "tail"),
    ]
    kinds = [[token.kind for token in at_step(tokens, step)] for step in range(4)]
    assert kinds[0] == ["masked"] * 5
    assert kinds[1] == ["text", "masked", "masked", "masked"]
    assert kinds[2] == ["text", "masked", "end"] and kinds[3] == ["text", "text", "end"]


def frames(
    forming: Forming, steps: list[Step], texts: int = 1, wait: str = "", colour: bool = False
) -> list[str]:
    """What stands in the terminal before the first step, and after each."""
    console = Console(
        file=io.StringIO(),
        width=60,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
        legacy_windows=False,
    )
    seen = []

    def draw() -> None:
        with console.capture() as captured:
            console.print(live.__self__)  # type: ignore[attr-defined]
        seen.append(captured.get())

    with watch(console, forming, texts, {1}, wait) as live:
        draw()
        for step in steps:
            live(step)
            draw()
    return seen


def test_a_terminal_shows_masks_steps_and_refreshes(forming: Forming, steps: list[Step]) -> None:
    wait, first, second, third = frames(forming, steps, wait="drawing registers")
    assert "drawing registers" in wait and "x···" in wait
    assert "step 1 of 3" in first and "drawing registers anew" in first and "x·1·" in first
    assert "step 2 of 3" in second and "◆ registers drawn anew" in second and "◆━─" in second
    assert "step 3 of 3" in third and "◆━━" in third and "x=1" in third


def test_of_several_texts_it_says_which(forming: Forming, steps: list[Step]) -> None:
    shown = frames(forming, [*steps, steps[0]], texts=4)
    assert "step 3 of 3, texts 1 to 2" in shown[3] and "step 1 of 3, texts 3 to 4" in shown[4]
    assert "x=1" in shown[4]


def test_a_text_cannot_speak_to_the_terminal(tiny_vocabulary: Vocabulary) -> None:
    v = tiny_vocabulary
    forming = Forming(v, torch.tensor([*v.encode("\x1b"), v.mask_id]))
    ids_BN = torch.tensor([[*v.encode("\x1b"), *v.encode("\x1b")]])
    shown = frames(forming, [Step(1, 1, ids_BN, ids_BN == v.mask_id)], colour=False)
    assert "\x1b" not in shown[-1] and shown[-1].count("‹ESC›") == 2


def test_tokens_have_the_colour_of_their_step_and_given_ones_none(
    forming: Forming, steps: list[Step]
) -> None:
    shown = frames(forming, steps, colour=True)[-1]
    assert "48;2;" in shown and "\nx\x1b[" in shown.replace("\r", "")
