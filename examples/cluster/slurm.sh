#!/bin/bash
# Denoise a shared folder on four nodes of a Slurm cluster: sbatch slurm.sh INPUT OUTPUT
#SBATCH --job-name=denoise
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# the nodes know each other by a token in the home folder, which they share
export RAY_AUTH_MODE=token
ray get-auth-token --generate > /dev/null
# starts Ray on each node, the script on the first, and stops Ray when the script ends
srun ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
    python examples/denoise_dataset.py --input "$1" --output "$2" --num_gpus 0.5 --num_cpus 4
