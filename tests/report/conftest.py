"""A model in memory and a report made without one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import crocodil
from crocodil.autoencoder import Autoencoder
from crocodil.bundle import save_autoencoder
from crocodil.metrics.reconstruction import cer
from crocodil.model import Model
from crocodil.report.records import Demasking, GridRow, ModelFacts, Reconstruction, Report, Token
from crocodil.reproduce.paper import cer_at
from crocodil.text.vocabulary import Vocabulary


@pytest.fixture(scope="session")
def tiny_model(
    tmp_path_factory: pytest.TempPathFactory,
    make_autoencoder: Callable[..., Autoencoder],
    tiny_vocabulary: Vocabulary,
) -> Model:
    """Random weights, K = 4, windows of 32 tokens; read from a folder, which the facts are about."""
    folder = tmp_path_factory.mktemp("model")
    save_autoencoder(folder, make_autoencoder(embedding_size=tiny_vocabulary.size), tiny_vocabulary, 32)
    return crocodil.load(str(folder), "cpu")


@pytest.fixture(scope="session")
def report() -> Report:
    """Two files at two NFE, one of them hostile, a table and a picture."""
    hostile = "</script><script>alert(1)</script>\n\x1b[31m & <b> \u202e\x00"
    texts = {"plain.py": ["x = 1\n", "x = 2\n"], "<i>.py": [hostile, hostile]}
    runs = [
        Reconstruction(file, text_at[0], text, cer(text, text_at[0]), nfe, 0.25)
        for file, text_at in texts.items()
        for nfe, text in zip((4, 16), reversed(text_at), strict=True)
    ]
    tokens = (
        Token("", 1, "start"),
        Token("</pre>", 2, "text"),
        Token("\n    ", 4, "text"),
        Token("", 3, "end"),
        Token("", 1, "tail"),
    )
    grid = [
        GridRow(16, 4, 3, 0.25, 0.2, 1 / 3, 0.01, None),
        GridRow(32, 4, 3, 0.5, 0.4, 0, 0.02, cer_at(32, 4, 32)),
    ]
    facts = ModelFacts(
        "tiny", "/models/tiny", 32, 4, 24, 325, 1000, 2_000_000, {}, 3_000_000, "f00d", "apache-2.0", 7
    )
    return Report(
        "A test",
        facts,
        4,
        "cpu, 1 threads",
        "0.0.0",
        runs,
        grid,
        32,
        Demasking("<i>.py", tokens, 4, 5),
    )
