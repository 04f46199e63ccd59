"""A trained denoiser as a folder: what comes back, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from crocodil.denoiser.dit import Denoiser, DenoiserConfig
from crocodil.denoiser.weights import TrainedDenoiser, load_denoiser, open_denoisers, save_denoiser
from crocodil.errors import CrocodilError


def write(folder: Path, conditional: bool = False, encoder: str = "e" * 16) -> TrainedDenoiser:
    torch.manual_seed(0)
    config = DenoiserConfig(K=4, D=6, width=8, layers=1, heads=2, conditional=conditional)
    trained = TrainedDenoiser(Denoiser(config), encoder, 0.3, any_k=True)
    folder.mkdir()
    save_denoiser(folder, trained, record={"steps": 3})
    return trained


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    trained = write(tmp_path / "one")
    found = load_denoiser(tmp_path / "one")
    assert (found.config, found.encoder, found.largest_offset, found.any_k) == (
        trained.config, "e" * 16, 0.3, True,
    )  # fmt: skip
    for name, tensor in trained.denoiser.state_dict().items():
        assert torch.equal(tensor, found.denoiser.state_dict()[name])
    assert json.loads((tmp_path / "one" / "training.json").read_text()) == {"steps": 3}


def change(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "other"}, "format"),
        ({"K": 8}, "places 8"),
        ({"K": 2**30}, "places"),
        ({"layers": 2**30}, "layers"),
        ({"D": 2**31 - 1}, "read"),
        ({"heads": 3}, "heads"),
        ({"K": "4"}, "wrong kind"),
        ({"width": 0}, "places 4 × 0"),
        ({"mlp_ratio": 0}, "at least 1"),
        ({"layers": 2}, "2 layers"),
        ({"largest_offset": 7}, "offset"),
        ({"any_k": 1}, "wrong kind"),
        ({"encoder": None}, "wrong kind"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_changed_config_is_refused_in_one_line(
    tmp_path: Path, values: dict[str, object], message: str
) -> None:
    write(tmp_path / "one")
    change(tmp_path / "one", **values)
    with pytest.raises(CrocodilError, match=message) as refused:
        load_denoiser(tmp_path / "one")
    assert "one" in str(refused.value) and "\n" not in str(refused.value)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "one")
    file = tmp_path / "one" / "model.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-8])
    with pytest.raises(CrocodilError, match=r"model\.safetensors"):
        load_denoiser(tmp_path / "one")
    file.write_bytes(good)
    tensors = load_file(file)
    tensors["place"][0, 0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(CrocodilError, match="place contains NaN"):
        load_denoiser(tmp_path / "one")
    with pytest.raises(CrocodilError):
        load_denoiser(tmp_path / "nowhere")


def test_folders_say_which_denoiser_they_are(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", conditional=True)
    write(tmp_path / "c")
    found = open_denoisers([tmp_path / "b", tmp_path / "a"], "e" * 16)
    assert found.conditional.config.conditional and not found.unconditional.config.conditional
    with pytest.raises(CrocodilError, match="second unconditional"):
        open_denoisers([tmp_path / "a", tmp_path / "c"], "e" * 16)
    with pytest.raises(CrocodilError, match="not|this model's is f"):
        open_denoisers([tmp_path / "a"], "f" * 16)
    assert open_denoisers([], "e" * 16).unconditional is None
