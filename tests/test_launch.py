"""Every file of launch/ is what its tool reads."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

LAUNCH = Path(__file__).parents[1] / "launch"
FILES = sorted(LAUNCH.glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_accelerate_reads_it_and_its_head_says_what_it_is_for(file: Path) -> None:
    config = load_config_from_file(str(file))
    assert config.num_machines == 1 and config.num_processes >= 1
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# ") and not lines[0].endswith("?")
    assert set(yaml.safe_load(file.read_text())) <= {
        "compute_environment", "distributed_type", "use_cpu", "num_machines", "num_processes", "main_process_port",
        "mixed_precision", "deepspeed_config", "fsdp_config",
    }  # fmt: skip


@pytest.mark.parametrize("file", sorted((LAUNCH / "deepspeed").glob("*.json")), ids=lambda file: file.name)
def test_deepspeed_reads_it_and_a_launch_file_names_it(file: Path) -> None:
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    settings = json.loads(file.read_text())
    zero = DeepSpeedZeroConfig(**settings["zero_optimization"])
    assert int(zero.stage) in (2, 3)
    # what the recipe says, or counts by itself, must not be said here
    assert settings["gradient_clipping"] == "auto" and settings["gradient_accumulation_steps"] == 1
    assert "optimizer" not in settings and "scheduler" not in settings
    assert any(f"launch/deepspeed/{file.name}" in one.read_text() for one in FILES)


def test_slurm_starts_one_launcher_a_node(tmp_path: Path) -> None:
    """The script runs as it is, with stand-ins for Slurm's commands that write down what they were asked."""
    script = LAUNCH / "slurm.sh"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    told = tmp_path / "told"
    for name, body in {
        "scontrol": "echo node1; sleep 0.2; echo node2",  # slowly: whoever reads one line only has gone by then
        "srun": 'shift 2; SLURM_NODEID=1 exec "$@"',
        "accelerate": f'printf "%s\\n" "$@" > {told}',
    }.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "123", "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2", "VENV": "none",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", script, "--resume", "steps=5"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    asked = told.read_text().splitlines()
    expected = [
        "launch", "--config_file", "launch/zero3.yaml", "--num_machines", "2", "--num_processes", "16",
        "--machine_rank", "1", "--main_process_ip", "node1", "--main_process_port", "20123",
        "recipes/train_demasker.py", "--config", "recipes/configs/llada-8b.yaml", "--resume", "steps=5",
    ]  # fmt: skip
    assert asked == expected


def test_nothing_of_a_site_is_in_the_slurm_script() -> None:
    directives = [
        line for line in (LAUNCH / "slurm.sh").read_text().splitlines() if line.startswith("#SBATCH")
    ]
    assert not [
        one for one in directives if any(word in one for word in ("partition", "account", "qos", "mail"))
    ]
