#!/usr/bin/env bash
# Train on several machines under Slurm. Submit from the root of the repository, which every node must see:
#
#   sbatch --nodes=4 launch/slurm.sh
#   sbatch --nodes=4 --partition=NAME --time=24:00:00 launch/slurm.sh --resume
#
# Everything after the script's name goes to the recipe. What differs from site to site (partition, account, time,
# modules) belongs on the sbatch line or in the variables here.
#SBATCH --job-name=crocodil
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --output=%x-%j.log
# A quarter of an hour before the time is up the recipe is told to save and stop; --resume goes on from there.
#SBATCH --signal=TERM@900
set -euo pipefail

RECIPE=${RECIPE:-recipes/train_demasker.py}
CONFIG=${CONFIG:-recipes/configs/llada-8b.yaml}
LAUNCH=${LAUNCH:-launch/zero3.yaml}
VENV=${VENV:-.venv}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
PORT=${PORT:-$((20000 + SLURM_JOB_ID % 10000))}

# not "| head": closing the pipe early can kill scontrol, and with it, by pipefail, this script
HOSTS=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
HEAD=${HOSTS%%$'\n'*}
PATH="$PWD/$VENV/bin:$PATH"
# torch's launcher would kill its workers 30 seconds after it was told to stop, in the middle of a checkpoint
TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-3600}
# rows differ in length, which would leave holes in the GPU's memory
PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
export HEAD PATH TORCH_ELASTIC_SHUTDOWN_TIMEOUT PYTORCH_CUDA_ALLOC_CONF

# One launcher per node starts that node's processes; SLURM_NODEID is known only inside srun, hence the inner shell.
srun --cpu-bind=none --kill-on-bad-exit=1 bash -c 'exec accelerate launch \
    --config_file "$0" --num_machines "$SLURM_NNODES" --num_processes "$1" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$HEAD" --main_process_port "$2" "${@:3}"' \
    "$LAUNCH" "$((SLURM_NNODES * GPUS_PER_NODE))" "$PORT" "$RECIPE" --config "$CONFIG" "$@"
