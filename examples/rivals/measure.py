#!/usr/bin/env python
"""Measure all trained rivals of a folder, the bundled weights and BM3D: tables, curves, and a sheet of crops.

    python examples/rivals/measure.py --rivals_dir rivals --data_dir data --output_dir out/rivals

--data_dir holds polyu-val, renoir-val and kodak24, or some of them: see docs/measuring.md. Run the same command again
to resume, or when more rivals are trained.
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))  # to import as the other examples do

import evaluate
import prepare_data
from options import HelpFormatter

from rivals import report


SETS = {
    "PolyU": "polyu-val",
    "RENOIR": "renoir-val",
    "white noise of 25/255": "kodak24@gaussian:25",
    "white noise of 25/255, grey": "kodak24@grey-gaussian:25",
    "phone at ISO 700": "kodak24@phone:700",
}
SETS_OF_STEPS = "PolyU", "white noise of 25/255", "phone at ISO 700"
DDPM_OPTIONS = ["steps=5", "steps=50", "steps=5,sampler=ddim", "sampler=ddim", "steps=50,sampler=ddim", "samples=8"]
# what is measured of a rival beside its defaults
OPTIONS = {
    "gdd": ["steps=3", "steps=10", "rule=origin", "steps=3,rule=origin", "steps=10,rule=origin"],
    "ddpm": DDPM_OPTIONS,
    "ddpm-unconditional": DDPM_OPTIONS,
    "fc-aide": ["adaptation_steps=20"],
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--rivals_dir", type=Path, required=True, help="Folder that train.py wrote.")
    add("--data_dir", type=Path, required=True, help="Folder of the test sets.")
    add("--output_dir", type=Path, required=True, help="Tables, plots and crops.")
    add("--num_images", type=int, default=4, help="Of each test set.")
    add("--num_small_images", type=int, default=100, help="Crops of 32x32 of kodak24.")
    add("--num_images_of_steps", type=int, default=2, help="Of each test set, with other options such as steps=10.")
    return parser.parse_args(argv)


def measure(sets: dict[str, str], peers: list[str], num_images: int, output_dir: Path):
    """Let evaluate.py measure `peers` and the bundled weights on so many images of each test set, paths by name."""
    if sets and peers:  # there may be no such set, or no trained rival with OPTIONS
        options = f"--model gdd-small gdd-fast --steps 1 --sigma blind --max_pictures {num_images}".split()
        data = [argument for name, path in sets.items() for argument in ("--data", f"{name}:{path}")]
        arguments = [*options, *data, "--compare", *peers, "--output_dir", str(output_dir)]
        evaluate.main(evaluate.parse_args(arguments))


def main(args: argparse.Namespace):
    names = report.trained(args.rivals_dir)
    peers = {name: f"rival:{args.rivals_dir / name}" for name in names}
    peers_of_steps = [f"{peers[n]}{o}" for n in OPTIONS if n in peers for o in ["", *(f":{o}" for o in OPTIONS[n])]]
    sets = {}
    for name, path in SETS.items():
        if (args.data_dir / path.partition("@")[0]).exists():
            sets[name] = args.data_dir / path
        else:
            print(f"{name} is left out: there is no {args.data_dir / path.partition('@')[0]}.", file=sys.stderr)
    small, kodak = args.output_dir / "kodak-32", args.data_dir / "kodak24"
    if kodak.exists() and not (small / "README.md").exists():  # written last
        options = ["--layout", "clean", "--tile_size", "32", "--validation_share", "0"]
        prepare_data.main(prepare_data.parse_args([*options, "--folder", str(kodak), "--output_dir", str(small)]))
    small_sets = {"32x32, white noise of 25/255": f"hub:{small}@gaussian:25"} if kodak.exists() else {}

    measure(sets, ["bm3d", *peers.values()], args.num_images, args.output_dir / "images")
    measure(small_sets, ["bm3d", *peers.values()], args.num_small_images, args.output_dir / "small")
    sets_of_steps = {name: sets[name] for name in SETS_OF_STEPS if name in sets}
    measure(sets_of_steps, peers_of_steps, args.num_images_of_steps, args.output_dir / "steps")
    report.main(report.parse_args(["--rivals_dir", str(args.rivals_dir), "--output_dir", str(args.output_dir)]))


if __name__ == "__main__":
    try:
        main(parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"measure.py: {error}")
    except KeyboardInterrupt:
        sys.exit("measure.py: stopped; run the same command again to resume.")
