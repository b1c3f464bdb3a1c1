#!/usr/bin/env python
"""Measure denoisers on real and simulated noise: quality by step rule and number of steps, speed and memory.

    python examples/evaluate.py --model my-gdd --data polyu:polyu-val --compare bm3d nlm wavelet ffdnet

Writes tables (Markdown and JSON), plots and sheets of crops to --output_dir. Run the same command again to resume.
`accelerate launch`, or `torchrun --nproc_per_node N` on CPUs, divides the images among processes.
"""

import argparse
import hashlib
import itertools
import json
import platform
import re
import shlex
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState


try:
    from evaluation import report
    from evaluation.benchmarks import ImageSet, load_data, write_submission
    from evaluation.card import load_card, write_card
    from evaluation.peers import load_peer, short_name, weights_file
    from evaluation.results import NOISY_INPUT, Method, Results, measure, runner, slug
except ImportError as error:
    sys.exit(f"evaluate.py: {error}; install the extra: pip install 'gdd-diffusers[eval]'")
from options import HelpFormatter
from tqdm.auto import tqdm

from gdd_diffusers.image_processor import pixels_to_tensor, tensor_to_pixels
from gdd_diffusers.metrics import WINDOW_SIZE, psnr, psnr_fitted, psnr_texture, ssim, ssim_matlab, ssim_texture
from gdd_diffusers.pipeline_real_denoise import DEFAULT_MODEL, RealDenoisePipeline
from gdd_diffusers.scheduling_interpolation import InterpolationScheduler


OWN_METRICS = {"psnr_fitted": psnr_fitted, "psnr_texture": psnr_texture, "ssim_texture": ssim_texture}
NUM_SHEET_CANDIDATES = 5  # images of each test set whose results are stored to choose crops from


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument_group("images").add_argument
    add(
        "--data",
        action="append",
        required=True,
        metavar="NAME:PATH[#LIST][@NOISE:LEVEL]",
        help="Repeatable. Folders of pairs, PolyU, CC, SIDD, DND or hub:REPO, see docs/measuring.md; "
        "#my-gdd/held_out.txt takes the images that a file names; @gaussian:25, @phone:1600, @camera:6400 or "
        "@mixed:3200 add noise to clean images, @grey-gaussian:25 and so on do it in grey, @none leaves them clean.",
    )
    add("--max_pictures", type=int, help="How many images of each test set to use, evenly spaced.")
    add = parser.add_argument_group("models of this package").add_argument
    add(
        "--model",
        action="extend",
        nargs="*",
        help="Repeatable. Folders, Hub repos or gdd-small, the default; none if no name follows.",
    )
    add("--steps", type=int, nargs="+", default=[1, 3, 5, 10], help="Numbers of steps.")
    add("--rules", nargs="+", choices=["origin", "improved"], default=["origin", "improved"], help="Step rules.")
    add("--strength", type=float, nargs="+", default=[1.0], help="How far to walk from the noisy image.")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="To compute in.")
    add = parser.add_argument_group("what to compare with, and by").add_argument
    add(
        "--compare",
        nargs="*",
        default=[],
        metavar="PEER",
        help="bm3d (free for non-commercial use only), nlm, wavelet, ffdnet, deepinv:CLASS:WEIGHTS, "
        "spandrel:ARCHITECTURE:WEIGHTS or rival:FOLDER.",
    )
    add(
        "--sigma",
        nargs="+",
        choices=["blind", "true", "best"],
        default=["blind", "true", "best"],
        help="Noise levels for those that need one: estimated, that of simulated noise, or the best of a long search.",
    )
    add(
        "--extra_metrics",
        nargs="*",
        default=[],
        metavar="METRIC",
        help=f"{', '.join(OWN_METRICS)}, or of pyiqa: lpips, niqe, ...; see docs/measuring.md.",
    )
    add = parser.add_argument_group("what to write").add_argument
    add("--output_dir", type=Path, default=Path("out/evaluate"), help="Tables, plots and crops.")
    add("--write_card", action="store_true", help="Write the figures into the cards of the models.")
    add("--submission", action="store_true", help="Write the files to submit to SIDD's benchmark and DND.")
    args = parser.parse_args(argv)
    if args.max_pictures is not None and args.max_pictures < 1:
        parser.error(f"--max_pictures must be at least 1, not {args.max_pictures}.")
    if min(args.steps) < 1 or not 0 <= min(args.strength) <= max(args.strength) <= 1:
        parser.error("--steps must be at least 1, and --strength in [0, 1].")
    if args.submission and args.max_pictures:
        parser.error("a --submission takes all images, leave out --max_pictures.")
    if args.write_card and not (args.model and all(Path(model).is_dir() for model in args.model)):
        parser.error("--write_card needs folders of models, given as --model.")
    for option in ("model", "compare", "sigma", "steps", "rules", "strength"):  # duplicates would be one row twice
        if getattr(args, option):
            setattr(args, option, list(dict.fromkeys(getattr(args, option))))
    return args


def load_methods(args, device: torch.device) -> list[Method]:
    """Load the rows of the tables: the noisy input, models under every rule and number of steps, and peers."""
    methods = [NOISY_INPUT]
    models = [None] if args.model is None else args.model
    labels = [DEFAULT_MODEL if model is None else Path(model).resolve().name for model in models]
    for model, label in zip(models, labels, strict=True):
        pipe = RealDenoisePipeline.from_pretrained(model, dtype=getattr(torch, args.dtype)).to(device)
        pipe.set_progress_bar_config(disable=True)
        methods += pipeline_methods(pipe, model or label, label if labels.count(label) == 1 else model, args)
    short_names = [short_name(peer) for peer in args.compare]
    for peer, name in zip(args.compare, short_names, strict=True):
        denoise, takes_sigma = load_peer(peer, device)
        weights = weights_file(peer)
        name = name if short_names.count(name) == 1 else peer
        fingerprint = hashlib.sha256(weights.read_bytes()).hexdigest() if weights else ""
        dtype = "float64" if peer == "bm3d" else "float32"
        sigmas = {None: "", "blind": ", blind", "true": ", true sigma", "best": ", best sigma"}
        chosen = args.sigma if takes_sigma else [None]
        methods += [Method(name + sigmas[key], denoise, key, dtype, fingerprint, name) for key in chosen]
    return methods


def pipeline_methods(pipe: RealDenoisePipeline, model: str, label: str, args) -> list[Method]:
    if max(args.steps) > (T := pipe.scheduler.config.num_train_timesteps):
        raise ValueError(f"--steps must be at most {T} for {model}, not {max(args.steps)}.")
    configs = [pipe.config, pipe.unet.config, pipe.scheduler.config]
    # keys with an underscore record where the model was loaded from
    settings = [{k: v for k, v in config.items() if not k.startswith("_")} for config in configs]
    fingerprint = hashlib.sha256(f"{settings} {args.dtype}".encode())
    for tensor in pipe.unet.state_dict().values():
        fingerprint.update(tensor.float().cpu().numpy())
    shared = {"dtype": args.dtype, "fingerprint": fingerprint.hexdigest(), "model": model}

    def denoise(image, rule, steps, strength):
        pipe.scheduler = InterpolationScheduler.from_config(pipe.scheduler.config, step_rule=rule)
        return pipe(image, num_inference_steps=steps, strength=strength, output_type="np").images[0]

    # the first step is the same under all rules, so one step is measured once
    walks = [(None, 1)] if 1 in args.steps else []
    walks += [(rule, steps) for rule in args.rules for steps in args.steps if steps > 1]
    methods = []
    for (rule, steps), strength in itertools.product(walks, args.strength):
        suffix = f", strength {strength:g}" if strength != 1 else ""
        variant = (f"{rule}, {steps} steps" if rule else "1 step") + suffix
        function = partial(denoise, rule=rule or args.rules[0], steps=steps, strength=strength)
        row = {"kind": label + suffix, "rule": rule, "steps": steps, "variant": variant}
        methods.append(Method(f"{label}, {variant}", function, **shared, **row))
    return methods


def load_metrics(extra: list[str], device: torch.device) -> dict[str, Callable]:
    metrics = {"psnr": psnr, "ssim": ssim, "ssim_matlab": ssim_matlab}
    for name in extra:
        if name in OWN_METRICS:
            metrics[name] = OWN_METRICS[name]
            continue
        try:
            import pyiqa

            metrics[name] = pyiqa.create_metric(name, device=device)
        except ImportError as error:
            raise ValueError(f"--extra_metrics needs pyiqa and torchvision: pip install pyiqa ({error}).") from error
        except (AssertionError, OSError) as error:  # an unknown name, or weights that cannot be downloaded
            raise ValueError(f"pyiqa cannot load the metric {name}: {error}") from error
    return metrics


def describe_machine(state: PartialState) -> str:
    if state.device.type == "cuda":
        machine = torch.cuda.get_device_name(state.device)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
        name = names[0] if names else platform.processor() or state.device.type
        machine = f"{name}, {torch.get_num_threads()} threads"
    return machine + f", {state.num_processes} processes at once" * (state.num_processes > 1)


def evenly_spaced(items: list, count: int | None) -> list:
    if count is None or count >= len(items):
        return items
    return [items[round(i)] for i in np.linspace(0, len(items) - 1, count)]


def large_enough(images: ImageSet, indices: list[int]) -> list[int]:
    """Leave out images that are too small for SSIM, so that all metrics are means over the same images."""
    small = [i for i in indices if images.min_side and images.min_side(i) < WINDOW_SIZE]
    if small:
        reason = f"smaller than {WINDOW_SIZE} x {WINDOW_SIZE} pixels, too small for SSIM"
        if len(small) == len(indices):
            raise ValueError(f"All chosen images of {images.name} are {reason}.")
        if PartialState().is_main_process:
            names = ", ".join(images.names[i] for i in small)
            count = f"{len(small)} of {len(indices)} images of {images.name}"
            print(f"Leaving out {count}, {reason}: {names}", file=sys.stderr)
    return [i for i in indices if i not in small]


def is_usable(method: Method, images: ImageSet) -> bool:
    """Whether a method can run on these images, and its figures mean anything there."""
    if method.sigma == "true":
        return bool(images.sigma)
    if method.sigma == "best":  # needs the ground truth, and without noise the best level is none
        return not images.submission and images.sigma != 0
    return not (method is NOISY_INPUT and images.sigma == 0)


def evaluate(methods: list[Method], results: Results, kept: set[int], metrics: dict[str, Callable], progress: tqdm):
    """Measure methods on this process's share of the images, except for what an earlier run has measured."""
    state, images, warm = PartialState(), results.images, set()
    methods, known = list(methods), {method.name: results.read(method) for method in methods}
    # image by image, so that other load on the machine slows all methods alike
    for i in results.chosen[state.process_index :: state.num_processes]:
        pair = results.load(i)
        noisy, clean = (None if x is None else pixels_to_tensor(x).movedim(0, -1).numpy() for x in pair)
        run = runner(noisy, warm)
        for method in list(methods):
            row = known[method.name].get(results.key(method, i), {"error": "not measured yet"})
            if "error" not in row and metrics.keys() <= row.keys():
                if i not in kept or results.image_file(method, i).exists():
                    continue
            progress.set_postfix_str(method.name)
            try:
                row, result = measure(method, run, noisy, clean, images.sigma, metrics, state.device)
            # another library's model may fail in any way; that costs its own row of the table, not the run
            except Exception as error:
                results.append(method, i, {"error": f"{type(error).__name__}: {error}"})
                tqdm.write(f"{method.name} failed on {images.names[i]} of {images.name}: {error}", file=sys.stderr)
                methods.remove(method)
                continue
            if i in kept:
                results.write_image(method, i, result)
            results.append(method, i, row)
        progress.update()


def collect(methods: list[Method], results: Results, metrics: dict[str, Callable]) -> dict:
    """Return the figures of one test set in the form that `evaluation.report` describes."""
    noisy_rows = results.read_chosen(NOISY_INPUT) if NOISY_INPUT in methods else None
    entries = []
    for method in methods:
        rows = results.read_chosen(method)
        fields = "name", "kind", "sigma", "model", "rule", "steps", "variant", "dtype"
        entry = {key: getattr(method, key) for key in fields}
        failed = [row for row in rows if "error" in row]
        if failed:
            entry["error"] = f"{failed[0]['error']} (on {failed[0]['picture']})"
        else:
            entry["figures"] = report.figures(rows, noisy_rows, list(metrics))
        entries.append(entry)
    names = [results.images.names[i] for i in results.chosen]
    part = {"name": results.images.name, "pictures": names, "of": len(results.images.names)}
    return part | {"machine": results.machine, "methods": entries}


def write_sheet(methods: list[Method], results: Results, kept: list[int], file: Path) -> tuple[str, dict]:
    images = {}
    for i in kept:
        noisy, clean = results.load(i)
        denoised = {method.name: results.read_image(method, i) for method in methods}
        noisy, clean = (tensor_to_pixels(pixels_to_tensor(pixels)) for pixels in (noisy, clean))  # 8 bits
        images[results.images.names[i]] = {NOISY_INPUT.name: noisy, **denoised, "clean": clean}
    return report.write_sheet(images, file)


def write_reports(data: list[dict], names: list[str], output_dir: Path):
    command = shlex.join(["python", *sys.argv])
    (output_dir / "results.json").write_text(json.dumps(report.without_infinity(data), indent=1))
    (output_dir / "results.md").write_text(report.markdown(data, names, command))
    for against in ("steps", "time"):
        report.plot(data, against, output_dir / f"{against}.png")


def main(args) -> bool:
    """Run the evaluation and return whether every row of the tables was measured."""
    # processes wait for each other after each test set, and one may be hours behind
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=1))
    methods = load_methods(args, state.device)
    names = [method.name for method in methods]
    metrics = load_metrics(args.extra_metrics, state.device)
    image_sets = [load_data(spec) for spec in args.data]
    slugs = [slug(images.name) for images in image_sets]
    for model in args.model if args.write_card else []:
        load_card(Path(model))  # find a broken card now, not when everything is measured
    if duplicates := [name for name in slugs if slugs.count(name) > 1]:
        raise ValueError(f"Two data sets are called {duplicates[0]}: give each --data a name of its own.")

    # 1. Choose the images, the same for every method
    chosen = [evenly_spaced(list(range(len(images.names))), args.max_pictures) for images in image_sets]
    chosen = [large_enough(images, indices) for images, indices in zip(image_sets, chosen, strict=True)]
    shares = [len(indices[state.process_index :: state.num_processes]) for indices in chosen]
    progress = tqdm(total=sum(shares), unit="image", disable=not state.is_main_process, smoothing=0.1)

    data, rows = [], {}
    for images, indices in zip(image_sets, chosen, strict=True):
        results = Results(args.output_dir, images, indices, describe_machine(state), state.process_index)
        submission = args.submission and images.submission
        kept = indices if submission else evenly_spaced(indices, NUM_SHEET_CANDIDATES)
        usable = [method for method in methods if is_usable(method, images)]
        # a benchmark keeps its ground truth; pyiqa says which metrics do without ("no reference")
        known = {k: m for k, m in metrics.items() if not images.submission or getattr(m, "metric_mode", "") == "NR"}

        # 2. Measure
        progress.set_description(images.name)
        evaluate(usable, results, set(kept), known, progress)
        state.wait_for_everyone()
        if not state.is_main_process:
            continue

        # 3. Report what is known after each test set
        part = collect(usable, results, known)
        data.append(part)
        figures = {entry["name"]: entry["figures"] for entry in part["methods"] if "figures" in entry}
        denoisers = [method for method in usable if method.name in figures and method is not NOISY_INPUT]
        if submission:
            for method in denoisers:
                folder = results.folder / "submission" / slug(method.name)
                denoised = (results.read_image(method, i) for i in indices)
                write_submission(images, denoised, folder, 1 / figures[method.name]["mpx_per_second"])
                print(f"Wrote {folder}")
        elif denoisers and not images.submission:
            image, crops = write_sheet(denoisers, results, kept, args.output_dir / f"sheet-{slug(images.name)}.png")
            rows[f"{images.name}, {image}"] = crops
            report.write_rows(rows, args.output_dir / "crops.png")
        tqdm.write(f"\n{part['name']}, {len(indices)} of {part['of']} images\n\n{report.table(part['methods'])}\n")
        write_reports(data, names, args.output_dir)
    progress.close()

    if state.is_main_process:
        print(f"\nPSNR in dB\n\n{report.summary(data, names)}\n")
        for model in args.model if args.write_card else []:
            write_card(Path(model), data)
    return not any("error" in method for part in data for method in part["methods"])


if __name__ == "__main__":
    try:
        if not main(parse_args()):
            sys.exit("error: some rows of the tables failed; they name the reason.")
    # errors that a user can cause are one sentence
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; run the same command again to resume.")
