"""The models of CADD's figures: what they are called, whether they are there, and the line that trains each."""

from __future__ import annotations

from collections.abc import Sequence

from crocodil.bundle import resolve
from crocodil.errors import CrocodilError
from crocodil.reproduce.lab import CADD, Lab
from crocodil.shards import read_json

LABELS = {
    "mdm": "MDM",
    "cadd": "CADD",
    "finetuned": "CADD out of MDM",
    "mdm_more": "MDM, trained on",
    "mdm_small": "MDM, small",
    "reference": "CADD, small",
    "reweight": "reweighted sum",
    "concat": "concatenation",
    "vp": "variance preserving",
    "mse_soft": "CE + MSE, soft",
    "mse_hard": "CE + MSE, hard",
    "rho_half": "half of ρ",
    "rho_double": "twice ρ",
    "rho_root_E": "ρ = √E",
    "letters_mdm": "MDM, letters",
    "letters_cadd": "CADD, letters",
    "both": "registers and latents",
    "registers_only": "registers alone",
    "digits_mdm": "MDM, digits",
    "digits_cadd": "CADD, digits",
}
_RECIPE = "accelerate launch recipes/train_cadd.py --config recipes/configs/"
_FROM_MDM = "init=runs/mdm_nano/export"
TRAINS = {
    "mdm": "cadd-nano.yaml latents=null run=runs/mdm_nano",
    "cadd": "cadd-nano.yaml",
    "finetuned": f"cadd-nano.yaml {_FROM_MDM} run=runs/cadd_finetuned",
    "mdm_more": f"cadd-nano.yaml {_FROM_MDM} latents=null run=runs/mdm_more",
    "mdm_small": "cadd-ablation.yaml latents=null",
    "reference": "cadd-ablation.yaml",
    "reweight": "cadd-ablation.yaml latents.fusion=reweight",
    "concat": "cadd-ablation.yaml latents.fusion=concat",
    "vp": "cadd-ablation.yaml latents.schedule=vp",
    "mse_soft": "cadd-ablation.yaml objective.squared=soft",
    "mse_hard": "cadd-ablation.yaml objective.squared=hard",
    "rho_half": "cadd-ablation.yaml latents.rho=1.766",
    "rho_double": "cadd-ablation.yaml latents.rho=7.064",
    "rho_root_E": "cadd-ablation.yaml latents.rho=11.314",
    "letters_mdm": "cadd-letters.yaml latents=null run=runs/mdm_letters",
    "letters_cadd": "cadd-letters.yaml",
    "both": "cadd-both.yaml",
    "registers_only": "cadd-both.yaml latents=null run=runs/registers_only",
    "digits_mdm": "cadd-digits.yaml latents=null run=runs/mdm_digits",
    "digits_cadd": "cadd-digits.yaml",
}
"""Behind recipes/configs/."""


def named(lab: Lab, names: Sequence[str]) -> list[str]:
    """Those of these models that there are."""
    return [name for name in names if lab.has(name)]


def wanted(lab: Lab, names: Sequence[str]) -> list[str]:
    """What is left out for want of a model, and the line that trains it."""
    found = []
    for name in names:
        if not lab.has(name):
            path = getattr(lab.config.cadd, name)
            why = "is null" if path is None else f"is {path}, which is not there"
            found.append(
                f"{LABELS[name]} is left out: cadd.{name} {why}. `{_RECIPE}{TRAINS[name]}` trains it."
            )
    return found


def steps_told(lab: Lab, names: Sequence[str], what: str = "texts") -> list[str]:
    """What each of these models was trained for, as its folder records it."""
    found = []
    for name in named(lab, names):
        try:
            record = read_json(resolve(lab.path_of(CADD + name)) / "training.json")
            config = record["config"]
            told = f"{record['steps']:,} steps of {config['batch_size']:,} {what}"
        except (
            CrocodilError,
            KeyError,
            TypeError,
            ValueError,
        ):  # a model without a record, or with another's
            continue
        found.append(f"{LABELS[name]} {told}{' on a trained model' if config.get('init') else ''}")
    return [f"Training: {'; '.join(found)}."] if found else []
