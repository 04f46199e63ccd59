from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.nursery import Fault, Nursery
from tests.faults.trials import SHORT, TINY_BASE, Trials, write_texts

collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]
"""Descriptors of processes, /proc and /dev/full are Linux's."""


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("jobs")) as nursery:
        yield nursery


@pytest.fixture(scope="session")
def trials(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Trials:
    folder = tmp_path_factory.mktemp("trials")
    texts = folder / "texts"
    texts.mkdir()
    write_texts(texts)
    about = [f"run={folder / 'base'}", f"data.source={texts}", f"data.cache={folder / 'corpus'}"]
    nursery.run("train_base", *about, *TINY_BASE)
    return Trials(nursery, texts, folder / "base" / "export")


@pytest.fixture(scope="session")
def control(tmp_path_factory: pytest.TempPathFactory, trials: Trials) -> Path:
    """A run of 60 steps that nothing interrupts, and beside it `seen`, the texts of each. Copy what you change."""
    folder = tmp_path_factory.mktemp("control")
    return trials.train(folder / "run", faults=[Fault(("write_down_samples", str(folder / "seen")))])


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory, trials: Trials) -> Path:
    """The same of 12 steps, the first 6 with LLaDA's weights frozen."""
    return trials.train(tmp_path_factory.mktemp("short") / "run", *SHORT)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory, trials: Trials) -> Path:
    """The same of 12 steps on two ranks."""
    return trials.train(tmp_path_factory.mktemp("pair") / "run", *SHORT, launch="cpu2.yaml")


@pytest.fixture(scope="session")
def control_pair(tmp_path_factory: pytest.TempPathFactory, trials: Trials) -> Path:
    """`control` on two ranks."""
    return trials.train(tmp_path_factory.mktemp("control_pair") / "run", launch="cpu2.yaml")
