#!/bin/bash
# Two nodes of eight GPUs, one process on each: sbatch slurm.sh. Submitted again, it goes on.
#SBATCH --job-name=vit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@300
#SBATCH --open-mode=append

# USR1 comes five minutes before the time is up: the run saves and ends. A process that is lost ends
# the others; without the flag Slurm would wait for them.
srun --kill-on-bad-exit=1 \
  python train.py --config configs/vit_b16.py --workdir "${WORKDIR:-runs/vit}" "$@"
