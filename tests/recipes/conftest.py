"""Runs that cost seconds before their first step are made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes.tiny import TINY_BASE, common, demasker, launch


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty small programs that no interpreter's version changes."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(20):
        lines = [f"def function_{i}(x, y):", f'    """Return {i} of x and y."""']
        lines += [f"    value_{j} = x * {i * j} + y // {j + 1}" for j in range(4 + i)]
        lines += [f"    return value_{j}" for j in range(2)]
        (folder / f"{i}.py").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    run = tmp_path_factory.mktemp("base") / "run"
    launch("train_base.py", "cpu.yaml", f"run={run}", *common(texts, run), *TINY_BASE)
    return run


@pytest.fixture(scope="session")
def one_rank(tmp_path_factory: pytest.TempPathFactory, texts: Path, base: Path) -> Path:
    run = tmp_path_factory.mktemp("one") / "run"
    launch("train_demasker.py", "cpu.yaml", *demasker(texts, base, run))
    return run
