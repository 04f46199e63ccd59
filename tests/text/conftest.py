"""Small vocabularies trained on different texts, shared by the tests of this folder."""

from __future__ import annotations

import os

import pytest

import crocodil.text.prepare
from crocodil.text.vocabulary import Vocabulary, train_bpe

PYTHON = '''def area(shape, scale=1.25):
    """Return the area of a shape."""
    if shape is None:
        raise ValueError("shape is missing")
    for side in shape.sides:
        print(side, scale)

    return {"area": shape.width * shape.height * scale}


class Shape:
    def __init__(self, width, height):
        self.width = width
        self.height = height
'''
PROSE = "Le crocodile nage très bien; déjà vu. 日本語のテキスト、日本の川。 中文文本 😀😃😄 Привет, мир! "


@pytest.fixture(scope="session")
def python_source() -> str:
    return PYTHON


@pytest.fixture(scope="session")
def prose() -> str:
    return PROSE


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return train_bpe([PYTHON, PYTHON.replace("shape", "figure"), PROSE] * 3, 460)


@pytest.fixture(scope="session")
def other_vocabulary() -> Vocabulary:
    return train_bpe([PROSE * 4, "import numpy as np\nshape = np.zeros(3)\n" * 3], 420)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crocodil.text.prepare, "PIECE_TOKENS", 300)
    monkeypatch.setattr(crocodil.text.prepare, "DOCUMENTS_PER_BATCH", 4)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # slow, and no test can tell
