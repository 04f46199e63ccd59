"""Where engines keep tensors: what each launch file gives is tested with the recipes; here is how weights come in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crocodil.demasker.llada import LLaDA, LLaDAConfig
from crocodil.demasker.weights import load_llada, save_llada

ROOT = Path(__file__).parents[2]
CONFIG = LLaDAConfig(
    d_model=512, n_layers=12, n_heads=8, n_kv_heads=8, mlp_hidden_size=1536, vocab_size=16384, embedding_size=16384,
    max_sequence_length=64, mask_token_id=5, eos_token_id=2, pad_token_id=2, rope_theta=1e4,
)  # fmt: skip


def test_mapped_weights_are_those_of_the_file_and_writing_changes_no_file(tmp_path: Path) -> None:
    config = LLaDAConfig(**{**vars(CONFIG), "d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2})
    save_llada(
        LLaDA(config).initialise(torch.Generator().manual_seed(0)), tmp_path / "model", dtype=torch.bfloat16
    )
    mapped, copied = load_llada(tmp_path / "model", mapped=True), load_llada(tmp_path / "model")
    for (name, one), other in zip(mapped.named_parameters(), copied.parameters(), strict=True):
        assert one.dtype == torch.bfloat16 and torch.equal(one, other), name
    with torch.no_grad():
        mapped.model.transformer.wte.weight.zero_()
    again = load_llada(tmp_path / "model")
    assert torch.equal(again.model.transformer.wte.weight, copied.model.transformer.wte.weight)


@pytest.mark.deepspeed
@pytest.mark.parametrize(
    ("how", "least", "most"),
    [("mapped", 0.5, 0.75), pytest.param("copied", 1.0, 1.4, marks=pytest.mark.slow)],
)
def test_no_rank_holds_a_whole_model_while_zero3_reads_it(
    how: str, least: float, most: float, tmp_path: Path
) -> None:
    """A model of 230 MB on two ranks: half of it, and a layer at a time. A copy is the control: all of it and more."""
    pytest.importorskip("deepspeed")
    if not Path("/proc/self/status").exists() or shutil.which("c++") is None:
        pytest.skip("wants Linux and, for DeepSpeed, a C++ compiler")
    model = LLaDA(CONFIG).initialise(torch.Generator().manual_seed(0))
    table = float(model.model.transformer.wte.weight.detach().double().sum())
    save_llada(model, tmp_path / "model")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    environment["MALLOC_MMAP_THRESHOLD_"] = (
        "65536"  # what is freed is given back, so that the rest is what is held
    )
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    command = [
        sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file",
        "launch/zero3_cpu2.yaml", "tests/training/loading.py", str(tmp_path / "model"), how, str(tmp_path / "told"),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in json.loads((tmp_path / "told").read_text()):
        assert rank["sum"] == pytest.approx(table) and rank["size"] > 200e6
        assert least < rank["most"] / rank["size"] < most and 0.45 < rank["held"] / rank["size"] < 0.6
