"""Where measurements are made: models, texts and a judge, opened when they are first needed, and what has been measured.

A `Task` is a piece of work small enough to lose: a setting, and a part of the texts. It is a frozen dataclass, so its
fields and the digests of what it reads say what its result is, and name it in the store.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch

import crocodil
from crocodil.bundle import INDEX
from crocodil.errors import CrocodilError
from crocodil.metrics.bertscore import CODE_BERT_SCORE, Scorer, open_scorer
from crocodil.metrics.generation import Judge, open_judge
from crocodil.model import Model, load
from crocodil.reproduce.config import ReproduceConfig
from crocodil.reproduce.store import Measured, Store, add_tensors
from crocodil.reproduce.texts import held_out_windows, texts_digest
from crocodil.sampler.demask import check
from crocodil.text.windows import Sample

MODELS = Path(crocodil.__file__).parent / "models"
BUNDLED = "bundled/"
MAIN = "model"
"""The name of the model that is reproduced; ablations have names of their own."""
DENOISER = "denoiser:"
"""Before the name of an ablation: that model with the ablation's denoiser."""
CADD = "cadd:"
"""Before the name of a model of the configuration's section `cadd`."""


class Task:
    """A piece of work; subclasses are frozen dataclasses whose fields are numbers, texts, tuples and other tasks."""

    reads: ClassVar[tuple[str, ...]] = ()
    """What the result depends on beside the fields: of `texts`, `judge`, `scorer`. Models are named in fields."""

    def check(self, lab: Lab) -> None:
        """Refuse what `run` would refuse, before anything is measured; a task of tasks asks them.

        Raises:
            CrocodilError: numbers that the model does not allow.
        """
        for task in self.inner():
            task.check(lab)

    def inner(self) -> Iterator[Task]:
        """The tasks among its fields."""
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            yield from (
                one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, Task)
            )

    def run(self, lab: Lab) -> Measured:
        """Do the work."""
        raise NotImplementedError

    def weight(self, lab: Lab) -> float:
        """About how much work it is, in token positions that a demasker evaluates; for the time that is left."""
        return 1.0


class Lab:
    """Models, texts and judges under one configuration.

    Args:
        model: a folder, a hub id or `bundled`.
        folder: where results are kept.
        denoisers: exports in place of the model's own.
    """

    def __init__(
        self,
        config: ReproduceConfig,
        folder: Path,
        model: str = "bundled",
        denoisers: Sequence[str] = (),
        device: torch.device | str | None = None,
    ) -> None:
        self.config = config
        self.store = Store(folder)
        self.name = model
        self.denoisers = tuple(denoisers)
        self.device = device
        self.model = lru_cache(maxsize=None)(self._model)
        self.digest = lru_cache(maxsize=None)(self._digest)
        self.key = lru_cache(maxsize=None)(self._key)
        self.short: dict[int, tuple[int, int]] = {}
        """Lengths of which fewer windows were there than asked for: (asked, there)."""
        self._windows: dict[tuple[str, int], list[Sample]] = {}

    def _model(self, name: str = MAIN) -> Model:
        if name == MAIN:
            return load(self.name, self.device, self.denoisers)
        if name.startswith(DENOISER):
            main = self.model(MAIN)
            given = Path(_resolved(self.path_of(name.removeprefix(DENOISER))))
            return Model(main.autoencoder, main.vocabulary, main.window, main.name, given_denoisers=[given])
        model = load(_resolved(self.path_of(name)), self.device)
        if name.startswith(CADD) and model.K and not model.own_denoisers:
            main = self.model(MAIN)
            if model.fingerprint == main.fingerprint:  # the same registers, so the same denoisers
                model.own_denoisers, model.given_denoisers = main.own_denoisers, main.given_denoisers
        return model

    def path_of(self, name: str) -> str:
        """The folder of an ablation's model, or of one of `cadd:`.

        Raises:
            CrocodilError: the configuration names none.
        """
        section, models = "ablations", vars(self.config.ablations)
        if name.startswith(CADD):
            section, name, models = "cadd", name.removeprefix(CADD), vars(self.config.cadd)
        if models[name] is None:
            raise CrocodilError(f"{section}.{name} names no model")
        return str(models[name])

    def has(self, name: str) -> bool:
        """Whether the configuration names a model of `cadd:`; one of the package must be there, too."""
        path = getattr(self.config.cadd, name.removeprefix(CADD))
        return path is not None and (
            not path.startswith(BUNDLED) or (Path(_resolved(path)) / INDEX).is_file()
        )

    @cached_property
    def judge(self) -> Judge:
        """The causal language model of Gen-PPL and MAUVE."""
        try:
            return open_judge(_resolved(self.config.judge), self._device, _dtype(self.config.judge_dtype))
        except CrocodilError as error:
            raise CrocodilError(f"{error}; judge=bundled/judge is a small one that is always there") from None

    @cached_property
    def scorer(self) -> Scorer:
        """The encoder of BERTScore."""
        name, layer = self.config.scorer, self.config.scorer_layer
        try:
            if name == CODE_BERT_SCORE["path_or_repo"] and layer is None:
                return open_scorer(**CODE_BERT_SCORE, device=self._device)
            return open_scorer(_resolved(name), self._device, layer=layer)
        except CrocodilError as error:
            raise CrocodilError(
                f"{error}; scorer=bundled/judge is a small one that is always there"
            ) from None

    @property
    def _device(self) -> torch.device:
        return self.model(MAIN).device

    def windows(self, length: int, part: tuple[int, int], model: str = MAIN) -> list[Sample]:
        """Held-out windows number part[0] … part[1] − 1 of this length in a model's tokens."""
        known = self._windows.get((model, length), [])
        if len(known) < part[1]:
            known = held_out_windows(self.model(model), self.config.source, part[1], length, self.config.seed)
            self._windows[model, length] = known
        return known[part[0] : part[1]]

    def parts(self, count: int, length: int | None = None, model: str = MAIN) -> Iterator[tuple[int, int]]:
        """Ranges that cover 0 … count − 1; with a `length`, no more than there are held-out windows of it."""
        if length is not None:
            there = len(self.windows(length, (0, count), model))
            if there < count:
                self.short[length] = (count, there)
            count = min(count, there)
        size = self.config.part
        return ((start, min(start + size, count)) for start in range(0, count, size))

    def result(self, task: Task) -> Measured:
        """What a task gives, measured now or before."""
        key = self.key(task)
        if key in self.store:
            return self.store.load(key)
        began = time.perf_counter()
        with torch.no_grad():
            measured = task.run(self)
        measured = Measured(measured.values, measured.tensors, time.perf_counter() - began)
        self.store.save(key, measured)
        return measured

    def _key(self, task: Task) -> str:
        """32 hex digits over a task, what it reads, and the version that measures."""
        content = json.dumps([crocodil.__version__, self._content(task)], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def _content(self, value: Any) -> Any:
        if not isinstance(value, Task):
            return [self._content(one) for one in value] if isinstance(value, tuple) else value
        described = {field.name: self._content(getattr(value, field.name)) for field in fields(value)}  # type: ignore[arg-type]
        for name in [*value.reads, *([described["model"]] if "model" in described else [])]:
            described[f"digest of {name}"] = self.digest(name)
        return [type(value).__name__, described]

    def _digest(self, name: str) -> str:
        """16 hex digits of a model's weights, of the judge or scorer, or of the texts as the main model reads them."""
        if name == "texts":
            return f"{texts_digest(self.model(MAIN), self.config.source)}/{self.config.seed}"
        if name == "judge":
            return f"{_weights(self.judge.model)}/{self.judge.dtype}/{self.judge.context}"
        if name == "scorer":
            return f"{_weights(self.scorer.model)}/{self.scorer.layer}/{self.scorer.dtype}"
        model = self.model(name)
        parts: list[torch.nn.Module] = [model.augmented or model.demasker]
        # what changes latents and is in no weight
        latents = ""
        if model.augmented is not None and model.augmented.latents is not None:
            latents = f"/{model.augmented.latents.settled}"
        both = (model.denoisers.unconditional, model.denoisers.conditional)
        parts += [one.denoiser for one in both if one is not None]
        offsets = [one.largest_offset for one in both if one is not None]
        return f"{model.fingerprint}/{'/'.join(map(_weights, parts))}/{offsets}{latents}"


def everything_read(task: Task) -> set[str]:
    """What a task and all tasks in it read."""
    return set(task.reads).union(*map(everything_read, task.inner()))


def check_decoding(model: Model, length: int, nfe: int, block_size: int | None = None, k: int = 1) -> None:
    """Refuse a decoding that the model or the sampler does not allow.

    Raises:
        CrocodilError: length, NFE, blocks or registers out of range.
    """
    mask_id = model.vocabulary.mask_id
    check(torch.tensor([model.resolve_length(length)]), mask_id, nfe, block_size, 0.0, "random")
    if not 1 <= k <= model.K:
        raise CrocodilError(f"k must be between 1 and {model.K}, the registers of {model.name}, not {k}")


def _resolved(name: str) -> str:
    """`bundled/NAME` is a model that comes with the package."""
    return str(MODELS / name.removeprefix(BUNDLED)) if name.startswith(BUNDLED) else name


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _weights(module: torch.nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=8)
    add_tensors(digest, module.state_dict())
    return digest.hexdigest()
