#!/usr/bin/env python
"""Measure denoisers on real and simulated noise: how good, under which step rule, after how many steps, and how fast.

    python examples/evaluate.py --model my-gdd --data polyu:polyu-val --compare bm3d nlm wavelet ffdnet

Writes tables (Markdown and JSON), plots and sheets of crops to --output_dir. Run the same command again to go on where
it was stopped. `accelerate launch`, or `torchrun --nproc_per_node N` on CPUs, divides the pictures among processes.
"""

import argparse
import hashlib
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
    from evaluation.benchmarks import PictureSet, load_data, write_dnd_submission, write_sidd_submission
    from evaluation.peers import load_peer
    from evaluation.results import NOISY_INPUT, Method, Results, measure, runner, slug, to_float
except ImportError as error:
    sys.exit(f"evaluate.py: {error}; install the extra: pip install 'gdd-diffusers[eval]'")
from tqdm.auto import tqdm

from gdd_diffusers.metrics import psnr, ssim, ssim_matlab
from gdd_diffusers.pipeline_real_denoise import BUNDLED, RealDenoisePipeline
from gdd_diffusers.scheduling_interpolation import InterpolationScheduler


KEPT_PICTURES = 5  # of each data set, whose results are kept to choose crops from


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="NAME:PATH[@NOISE:LEVEL]",
        help="Repeatable. Folders of pairs, PolyU, CC, SIDD, DND or hub:REPO, see examples/evaluation/benchmarks.py; "
        "@gaussian:25, @phone:1600, @camera:6400 or @mixed:3200 put noise on clean pictures, @none leaves them clean.",
    )
    parser.add_argument("--max_pictures", type=int, help="So many of each data set, evenly spaced, for every method.")
    parser.add_argument("--output_dir", type=Path, default=Path("out/evaluate"))
    parser.add_argument(
        "--compare",
        nargs="*",
        default=[],
        metavar="PEER",
        help="bm3d (free for non-commercial use only), nlm, wavelet, ffdnet, deepinv:CLASS:WEIGHTS or "
        "spandrel:ARCHITECTURE:WEIGHTS.",
    )
    parser.add_argument("--extra_metrics", nargs="*", default=[], metavar="METRIC", help="Of pyiqa: lpips, niqe, ...")
    ours = parser.add_argument_group("models of this package")
    ours.add_argument(
        "--model",
        action="extend",
        nargs="*",
        help="Repeatable. Folders or Hub repos; what is bundled if left out, none if no name follows.",
    )
    ours.add_argument("--steps", type=int, nargs="+", default=[1, 3, 5, 10])
    ours.add_argument("--rules", nargs="+", choices=["origin", "improved"], default=["origin", "improved"])
    ours.add_argument("--strength", type=float, nargs="+", default=[1.0])
    ours.add_argument("--self_ensemble", action="store_true", help="Also with the mean over 8 flips and turns.")
    ours.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    ours.add_argument("--write_card", action="store_true", help="Write the figures into the model folders' cards.")
    ours.add_argument("--submission", action="store_true", help="Write the files that SIDD's benchmark and DND take.")
    args = parser.parse_args(argv)
    if args.max_pictures is not None and args.max_pictures < 1:
        parser.error(f"--max_pictures must be at least 1, not {args.max_pictures}.")
    if min(args.steps) < 1 or not 0 <= min(args.strength) <= max(args.strength) <= 1:
        parser.error("--steps must be at least 1, and --strength in [0, 1].")
    if args.submission and args.max_pictures:
        parser.error("a --submission takes all pictures, leave out --max_pictures.")
    if args.write_card and not (args.model and all(Path(model).is_dir() for model in args.model)):
        parser.error("--write_card needs folders of models, given as --model.")
    for option in ("model", "compare", "steps", "rules", "strength"):  # a row given twice is one row
        if getattr(args, option):
            setattr(args, option, list(dict.fromkeys(getattr(args, option))))
    return args


def load_methods(args, device: torch.device) -> list[Method]:
    """The rows of the tables: the noisy input, models under every rule and number of steps, and peers."""
    methods = [NOISY_INPUT]
    models = [None] if args.model is None else args.model
    labels = [BUNDLED.name if model is None else Path(model).resolve().name for model in models]
    for model, label in zip(models, labels, strict=True):
        pipe = RealDenoisePipeline.from_pretrained(model, dtype=getattr(torch, args.dtype)).to(device)
        pipe.set_progress_bar_config(disable=True)
        methods += pipeline_methods(pipe, model or label, label if labels.count(label) == 1 else model, args)
    short_names = [peer.rpartition(":")[0] if peer.count(":") > 1 else peer for peer in args.compare]
    for peer, name in zip(args.compare, short_names, strict=True):
        denoise, takes_sigma = load_peer(peer, device)
        weights = peer.removeprefix(f"{name}:") if name != peer else None
        name = name if short_names.count(name) == 1 else peer
        fingerprint = hashlib.sha256(Path(weights).read_bytes()).hexdigest() if weights else ""
        dtype = "float64" if peer == "bm3d" else "float32"
        ways = {"blind": ", blind", "true": ", true sigma", "best": ", best sigma"} if takes_sigma else {None: ""}
        methods += [Method(name + words, denoise, way, dtype, fingerprint) for way, words in ways.items()]
    return methods


def pipeline_methods(pipe: RealDenoisePipeline, model: str, label: str, args) -> list[Method]:
    configs = [pipe.config, pipe.unet.config, pipe.scheduler.config]
    # names with an underscore tell where the model was loaded from
    settings = [{k: v for k, v in config.items() if not k.startswith("_")} for config in configs]
    fingerprint = hashlib.sha256(f"{settings} {args.dtype}".encode())
    for tensor in pipe.unet.state_dict().values():
        fingerprint.update(tensor.float().cpu().numpy())

    def denoise(picture, rule, steps, strength):
        pipe.scheduler = InterpolationScheduler.from_config(pipe.scheduler.config, step_rule=rule)
        return pipe(picture, num_inference_steps=steps, strength=strength, output_type="np").images[0]

    if max(args.steps) > (T := pipe.scheduler.config.num_train_timesteps):
        raise ValueError(f"--steps must be at most {T} for {model}, not {max(args.steps)}.")
    methods = []
    # all rules take the same first step, so that one step is measured once
    walks = [(rule, steps) for rule in args.rules for steps in args.steps if steps > 1]
    for rule, steps in [(None, 1)] * (1 in args.steps) + walks:
        for strength in args.strength:
            plain = partial(denoise, rule=rule or args.rules[0], steps=steps, strength=strength)
            words = f", strength {strength:g}" * (strength != 1)
            functions = {words: plain}
            if args.self_ensemble:
                functions[f"{words}, x8"] = partial(self_ensemble, plain)
            for words, function in functions.items():
                variant = f"{rule}, {steps} steps{words}" if rule else f"1 step{words}"
                row = {"model": model, "kind": label + words, "rule": rule, "steps": steps, "variant": variant}
                name = f"{label}, {variant}"
                methods.append(Method(name, function, None, args.dtype, fingerprint.hexdigest(), **row))
    return methods


def self_ensemble(denoise: Callable, picture: np.ndarray) -> np.ndarray:
    """The mean of the results for the picture's 8 flips and turns, each turned back."""
    results = []
    for turns in range(4):
        turned = np.rot90(picture, turns)
        results.append(np.rot90(denoise(np.ascontiguousarray(turned)), -turns))
        results.append(np.rot90(denoise(np.ascontiguousarray(turned[:, ::-1]))[:, ::-1], -turns))
    return np.mean(results, axis=0)


def load_metrics(extra: list[str], device: torch.device) -> dict[str, Callable]:
    metrics = {"psnr": psnr, "ssim": ssim, "ssim_matlab": ssim_matlab}
    for name in extra:
        try:
            import pyiqa

            metrics[name] = pyiqa.create_metric(name, device=device)
        except ImportError as error:
            raise ValueError(f"--extra_metrics needs pyiqa and torchvision: pip install pyiqa ({error}).") from error
        except (AssertionError, OSError) as error:  # an unknown name, or weights that cannot be downloaded
            raise ValueError(f"pyiqa cannot give the metric {name}: {error}") from error
    return metrics


def describe_machine(state: PartialState) -> str:
    if state.device.type == "cuda":
        machine = torch.cuda.get_device_name(state.device)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
        machine = (
            f"{names[0] if names else platform.processor() or state.device.type}, {torch.get_num_threads()} threads"
        )
    return machine + f", {state.num_processes} processes at once" * (state.num_processes > 1)


def evenly_spaced(items: list, count: int | None) -> list:
    if count is None or count >= len(items):
        return items
    return [items[round(i)] for i in np.linspace(0, len(items) - 1, count)]


def usable_methods(methods: list[Method], pictures: PictureSet) -> list[Method]:
    """Without those that cannot be had on these pictures, or say nothing there."""

    def usable(method):
        if method.sigma == "true":
            return bool(pictures.sigma)
        if method.sigma == "best":  # takes the clean picture; and where there is no noise, none is the best level
            return not pictures.submission and pictures.sigma != 0
        return not (method is NOISY_INPUT and pictures.sigma == 0)

    return list(filter(usable, methods))


def evaluate(methods: list[Method], results: Results, kept: set[int], metrics: dict[str, Callable], progress: tqdm):
    """Measures methods on this process's share of the pictures, leaving out what is known from a run before."""
    state, pictures, warm = PartialState(), results.pictures, set()
    methods, known = list(methods), {method.name: results.read(method) for method in methods}
    # picture by picture, so that what else the machine does meanwhile falls on all methods alike
    for i in results.chosen[state.process_index :: state.num_processes]:
        noisy, clean = results.load(i)
        noisy, clean = to_float(noisy), None if clean is None else to_float(clean)
        run = runner(noisy, warm)
        for method in list(methods):
            row = known[method.name].get(results.key(method, i), {"error": "not measured yet"})
            if "error" not in row and metrics.keys() <= row.keys():
                if i not in kept or results.picture_file(method, i).exists():
                    continue
            progress.set_postfix_str(method.name)
            try:
                row, result = measure(method, run, noisy, clean, pictures.sigma, metrics, state.device)
            # Whatever a foreign model stumbles over costs it its own line of the table, not the run.
            except Exception as error:
                results.append(method, i, {"error": f"{type(error).__name__}: {error}"})
                tqdm.write(f"{method.name} failed on {pictures.names[i]} of {pictures.name}: {error}", file=sys.stderr)
                methods.remove(method)
                continue
            if i in kept:
                results.write_picture(method, i, result)
            results.append(method, i, row)
        progress.update()


def collect(methods: list[Method], results: Results, metrics: dict[str, Callable]) -> dict:
    """One data set as `evaluation.report` wants it."""
    noisy_rows = results.read_chosen(NOISY_INPUT) if NOISY_INPUT in methods else None
    entries = []
    for method in methods:
        rows = results.read_chosen(method)
        entry = {key: getattr(method, key) for key in ("name", "model", "kind", "rule", "steps", "variant", "dtype")}
        failed = [row for row in rows if "error" in row]
        if failed:
            entry["error"] = f"{failed[0]['error']} (on {failed[0]['picture']})"
        else:
            entry["figures"] = report.figures(rows, noisy_rows, list(metrics))
        entries.append(entry)
    names = [results.pictures.names[i] for i in results.chosen]
    return {
        "name": results.pictures.name,
        "pictures": names,
        "of": len(results.pictures.names),
        "machine": results.machine,
        "methods": entries,
    }


def write_sheet(methods: list[Method], results: Results, kept: list[int], file: Path):
    pictures = {}
    for i in kept:
        noisy, clean = results.load(i)
        denoised = {method.name: results.read_picture(method, i) for method in methods if method is not NOISY_INPUT}
        pictures[results.pictures.names[i]] = {NOISY_INPUT.name: noisy, **denoised, "clean": clean}
    report.sheet(pictures, file)


def write_submission(method: Method, results: Results, seconds_per_megapixel: float):
    folder = results.folder / "submission" / slug(method.name)
    folder.mkdir(parents=True, exist_ok=True)
    denoised = (results.read_picture(method, i) for i in results.chosen)
    if results.pictures.submission == "sidd":
        write_sidd_submission(folder, results.pictures.names, denoised, seconds_per_megapixel)
    else:
        write_dnd_submission(folder, results.pictures.names, denoised)
    print(f"Wrote {folder}")


def write_reports(data: list[dict], args):
    (args.output_dir / "results.json").write_text(json.dumps(report.without_infinity(data), indent=1))
    (args.output_dir / "results.md").write_text(report.markdown(data, shlex.join(["python", *sys.argv])))
    report.plot_steps(data, args.output_dir / "steps.png")
    report.plot_time(data, args.output_dir / "time.png")


def main(args):
    # processes wait for each other after each data set, and one may be hours behind
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=1))
    methods = load_methods(args, state.device)
    metrics = load_metrics(args.extra_metrics, state.device)
    data_sets = [load_data(spec) for spec in args.data]
    slugs = [slug(pictures.name) for pictures in data_sets]
    if twice := [name for name in slugs if slugs.count(name) > 1]:
        raise ValueError(f"Two data sets are called {twice[0]}: give each --data a name of its own.")

    # 1. Choose the pictures, the same for every method
    chosen = [evenly_spaced(list(range(len(pictures.names))), args.max_pictures) for pictures in data_sets]
    shares = [len(numbers[state.process_index :: state.num_processes]) for numbers in chosen]
    progress = tqdm(total=sum(shares), unit="picture", disable=not state.is_main_process, smoothing=0.1)

    data = []
    for pictures, numbers in zip(data_sets, chosen, strict=True):
        results = Results(args.output_dir, pictures, numbers, describe_machine(state), state.process_index)
        submission = args.submission and pictures.submission
        kept = numbers if submission else evenly_spaced(numbers, KEPT_PICTURES)
        usable = usable_methods(methods, pictures)
        # pyiqa says which metrics do without a reference, which a benchmark keeps for itself
        known = {k: m for k, m in metrics.items() if not pictures.submission or getattr(m, "metric_mode", "") == "NR"}

        # 2. Measure
        progress.set_description(pictures.name)
        evaluate(usable, results, set(kept), known, progress)
        state.wait_for_everyone()
        if not state.is_main_process:
            continue

        # 3. Report, after each data set, as much as is known
        part = collect(usable, results, known)
        data.append(part)
        worked = [method for method, entry in zip(usable, part["methods"], strict=True) if "figures" in entry]
        denoisers = [method for method in worked if method is not NOISY_INPUT]
        if submission:
            for method in denoisers:
                speed = next(e["figures"]["mpx_per_second"] for e in part["methods"] if e["name"] == method.name)
                write_submission(method, results, 1 / speed)
        elif denoisers and not pictures.submission:
            write_sheet(denoisers, results, kept, args.output_dir / f"sheet-{slug(pictures.name)}.png")
        tqdm.write(f"\n{part['name']}, {len(numbers)} of {part['of']} pictures\n\n{report.table(part['methods'])}\n")
        write_reports(data, args)
    progress.close()

    if state.is_main_process:
        print(f"\nPSNR in dB\n\n{report.summary(data)}\n")
        for model in args.model if args.write_card else []:
            report.write_card(Path(model), model, data)


if __name__ == "__main__":
    try:
        main(parse_args())
    # what a user can cause is said in one sentence
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; run the same command again to go on.")
