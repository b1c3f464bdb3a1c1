#!/usr/bin/env bash
# Train on SIDD-Medium, measure on the validation blocks, write the submission, and publish. See docs/sidd.md.
#
#     bash examples/sidd.sh SIDD_Medium_Srgb SIDD_validation SIDD_benchmark ORG/gdd-sidd [OPTION OF train.py ...]
#
# Run the same command again to go on where it was stopped. For several GPUs, put
# LAUNCH="accelerate launch --multi_gpu --num_processes 8" in front of it.
set -euo pipefail
medium=$1 validation=$2 benchmark=$3 repo=$4
examples=$(dirname "$0")

python "$examples/prepare_data.py" --layout sidd --folder "$medium" --output_dir sidd-tiles
${LAUNCH:-python} "$examples/train.py" --dataset_name sidd-tiles --output_dir gdd-sidd --resume_from_checkpoint latest \
    --license other "${@:5}"
python "$examples/evaluate.py" --model gdd-sidd --data "SIDD validation:$validation" \
    --data "SIDD benchmark:$benchmark" --steps 1 --submission --write_card --output_dir out/sidd
gdd publish gdd-sidd "$repo"
