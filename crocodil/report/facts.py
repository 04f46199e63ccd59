"""What can be said of a model and of the machine it runs on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from crocodil.bundle import resolve
from crocodil.model import Model
from crocodil.report.records import ModelFacts
from crocodil.shards import list_tensors, read_json


def model_facts(model: Model) -> ModelFacts:
    """Sizes from the model in memory, the rest from its folder."""
    folder = resolve(model.name)
    return ModelFacts(
        name=model.name,
        path=str(folder),
        window=model.window,
        K=model.K,
        D=model.D,
        vocabulary=model.vocabulary.size,
        encoder_parameters=_parameters(model.autoencoder.encoder) if model.K else 0,
        demasker_parameters=_parameters(model.augmented or model.demasker),
        denoiser_parameters=_denoisers([*model.own_denoisers, *model.given_denoisers]),
        bytes=sum(file.stat().st_size for file in folder.rglob("*.safetensors")),
        fingerprint=model.fingerprint if model.K else "",
        licence=_licence(folder / "README.md"),
        trained_steps=_steps(folder / "training.json"),
    )


def machine(device: torch.device) -> str:
    """What times are taken on."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} {'thread' if threads == 1 else 'threads'}, torch {torch.__version__}"


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _denoisers(folders: Sequence[Path]) -> dict[str, int]:
    """Parameters of each denoiser by its kind, from headers alone: nothing is loaded that may not be wanted."""
    found = {}
    for folder in folders:
        kind = "conditional" if read_json(folder / "config.json").get("conditional") else "unconditional"
        found[kind] = sum(math.prod(stored.shape) for stored in list_tensors(folder).values())
    return found


def _licence(card: Path) -> str:
    """The licence in the front matter of a model card, or nothing."""
    try:
        _, front, _ = card.read_text("utf-8").split("---\n", 2)
        return str(yaml.safe_load(front)["license"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return ""


def _steps(record: Path) -> int | None:
    try:
        return int(json.loads(record.read_text("utf-8"))["steps"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
