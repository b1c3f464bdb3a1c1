#!/usr/bin/env bash
# Measure all trained rivals of a folder, and BM3D. See docs/rivals.md.
#
#     bash examples/rivals/measure.sh RIVALS OUTPUT --data NAME:PATH [OPTION OF evaluate.py ...]
#
# Run the same command again to go on where it was stopped.
set -euo pipefail
rivals=$1 output=$2
examples=$(dirname "$0")/..

peers=(bm3d)
for folder in "$rivals"/*/; do
    peers+=("rival:${folder%/}")
done
for options in steps=3 steps=10 steps=3,rule=origin steps=10,rule=origin; do
    peers+=("rival:$rivals/gdd:$options")
done
for options in steps=5 steps=50 steps=10,sampler=ddpm steps=10,samples=8; do
    peers+=("rival:$rivals/ddpm:$options")
done
peers+=("rival:$rivals/fc-aide:adaptation_steps=20")

python "$examples/evaluate.py" --model --compare "${peers[@]}" --output_dir "$output" "${@:3}"
python "$examples/rivals/report.py" --rivals_dir "$rivals" --results "$output/results.json" --plot "$output/curves.png"
