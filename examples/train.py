#!/usr/bin/env python
"""Train a general denoising diffusion model on noisy and clean pairs, or on clean photographs alone.

    python examples/train.py --noisy_dir pairs/noisy --gt_dir pairs/clean --pretrained_model gdd-small \\
        --output_dir my-gdd

The output folder is a pipeline that `RealDenoisePipeline.from_pretrained` loads. Ctrl-C stops the training at any
moment, and `--resume_from_checkpoint latest` goes on: the result is the same, on one CPU process bit for bit. See
docs/training.md, and start it by `accelerate launch` for several GPUs.
"""

import argparse
import json
import logging
import math
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path


# Threads that wait for each other should spin briefly, then sleep. With long spinning, the default, any other load on
# the CPU makes training several times slower; threads that sleep at once wake up late. When torch is imported, most
# OpenMP libraries read the first variable, and GNU's the second.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, send_to_device, set_seed
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from huggingface_hub import create_repo
from options import SPLIT_BY, HelpFormatter
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from training.checkpoints import (
    averaged_weights,
    find_checkpoints,
    load_checkpoint,
    remove_partial_folders,
    rewind_log,
    save_checkpoint,
    save_pipeline,
)
from training.data import load_data
from training.machine import check_launch, choose_precision, has_fast_bf16, ignore_foreign_signals, stop_signals
from training.model import PRESETS, build_optimizer, build_pipeline, load_teacher
from training.validation import format_scores, training_card, validate

from gdd_diffusers import losses
from gdd_diffusers.data.batches import TrainingBatches
from gdd_diffusers.hub import publish
from gdd_diffusers.memory import keep_freed_memory


logger = logging.getLogger("train")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text}")
    return int(text)


def crop_schedule(text: str) -> list[tuple[int, float]]:
    """Parse `96:0.5,128` to [(96, 0.5), (128, 1.0)]: sizes, and the share of the training that each is used up to."""
    try:
        parts = [part.partition(":") for part in text.split(",")]
        schedule = [(positive(size), float(until or 1)) for size, _, until in parts]
    except (ValueError, argparse.ArgumentTypeError):
        schedule = [(0, 0)]
    shares = [until for _, until in schedule]
    if shares[-1] != 1 or shares[0] <= 0 or shares != sorted(set(shares)):
        raise argparse.ArgumentTypeError(f"must be pixels, or a schedule such as 96:0.5,128:0.8,192, not {text}")
    return schedule


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument_group("images to learn from, at least one").add_argument
    add("--noisy_dir", action="append", default=[], help="Noisy images of real pairs. Repeatable.")
    add("--gt_dir", action="append", default=[], help="Their ground truth, of the same names. Repeatable.")
    add("--clean_dir", action="append", default=[], help="Clean photographs to simulate noise on. Repeatable.")
    add("--dataset_name", action="append", default=[], help="Dataset on the Hub or in a folder. Repeatable.")
    add = parser.add_argument_group("what to train, and where to").add_argument
    add(
        "--pretrained_model", help="Pipeline to fine-tune: gdd-small, a folder or a Hub repo; without it, a new model."
    )
    add("--model_config", default="gdd-small", help=f"Of a new model: a JSON file, or {PRESETS}.")
    add("--output_dir", required=True, help="Folder for the model, its checkpoints and logs.")
    add("--max_train_steps", type=positive, default=20_000, help="After which the learning rate is zero.")
    add("--max_train_minutes", type=float, help="Save and exit after this time, to be resumed.")
    add("--resume_from_checkpoint", help="Folder of a checkpoint, or `latest`, which starts anew if there is none.")
    add = parser.add_argument_group("validation, on scenes that are held out of the training").add_argument
    add("--split_by", choices=["scene", "image"], default="scene", help=SPLIT_BY)
    add("--validation_share", type=float, default=0.05, help="Of the scenes, at least one.")
    add("--validation_dir", action="append", default=[], help="Pairs of your own in noisy/ and clean/. Repeatable.")
    add("--validation_steps", type=positive, default=1000, help="How often to validate.")
    add("--num_validation_images", type=positive, default=8, help="In all, evenly from each validation_dir.")
    add("--validation_inference_steps", type=positive, nargs="+", default=[1, 4], help="The first picks the best.")
    add = parser.add_argument_group("the machine").add_argument
    precisions = ["no", "fp16", "bf16"]
    add("--mixed_precision", choices=precisions, help="What accelerate was told; else bf16 if the processor has it.")
    add("--train_batch_size", type=positive, default=16, help="Per process, at the first crop size.")
    add("--gradient_accumulation_steps", type=positive, default=1, help="Batches for each step.")
    add("--dataloader_num_workers", type=int, default=1, help="Processes that prepare batches.")
    add("--seed", type=int, default=0, help="Of the weights, the order of the data, and the noise.")
    add = parser.add_argument_group("images, in detail").add_argument
    add("--noisy_column", default="noisy", help="Of the datasets; without it, noise is simulated.")
    add("--clean_column", default="clean", help="Of the datasets.")
    add("--streaming", action="store_true", help="Read the datasets without storing them.")
    add("--weights", type=float, nargs="+", help="How often to draw from each clean_dir, noisy_dir, dataset_name.")
    add("--noise_preset", default="mixed", help="The cameras that `CameraNoise` simulates.")
    add("--crop_size", type=crop_schedule, default="96", help="Pixels, or by share of the steps: 96:0.5,128:0.8,192.")
    add = parser.add_argument_group("loss and optimizer").add_argument
    add("--teacher", help="Pipeline whose predictions are the target, instead of the ground truth.")
    add("--prediction_type", choices=["sample", "flow_prediction"], help="Predict x0 (default) or the noise.")
    add("--loss", choices=["charbonnier", "l1", "l2"], default="charbonnier", help="Between x0 and its prediction.")
    add("--loss_weighting", choices=["none", "noise"], default="none", help="noise: faint noise counts like strong.")
    add("--timestep_sampling", choices=["uniform", "far"], default="uniform", help="far: nearer to T, T (1 - u^2).")
    add("--optimizer", choices=["adamw", "muon"], default="adamw", help="muon: for the hidden convolutions.")
    add("--learning_rate", type=float, help="At its peak (default: 1e-3, for a pretrained model 2e-4).")
    add("--lr_warmup_steps", type=int, help="Up to the peak, then follows a cosine to 0 (default: 5%%, at most 200).")
    add("--max_grad_norm", type=float, default=1.0, help="To which gradients are clipped.")
    add = parser.add_argument_group("saving and publishing").add_argument
    add("--checkpointing_steps", type=positive, default=500, help="How often to save a checkpoint and the model.")
    add("--checkpoints_total_limit", type=positive, default=2, help="Older ones are deleted.")
    add("--report_to", default="tensorboard", help="Any tracker of accelerate, or none.")
    add("--license", default="unknown", help="Of the weights, for the model card.")
    add("--push_to_hub", action="store_true", help="Publish the model at the end.")
    add("--hub_model_id", help="ORG/NAME.")
    args = parser.parse_args(argv)

    args.command = sys.argv[1:] if argv is None else argv
    if args.learning_rate is None:
        args.learning_rate = 2e-4 if args.pretrained_model else 1e-3
    if args.lr_warmup_steps is None:
        args.lr_warmup_steps = min(200, args.max_train_steps // 20)
    num_sources = len(args.clean_dir) + len(args.noisy_dir) + len(args.dataset_name)
    if num_sources == 0:
        parser.error("give something to learn from: --clean_dir, --noisy_dir and --gt_dir, or --dataset_name.")
    if len(args.noisy_dir) != len(args.gt_dir):
        parser.error("give one --gt_dir for each --noisy_dir.")
    if args.weights and (len(args.weights) != num_sources or min(args.weights) <= 0):
        parser.error(f"--weights needs one number above 0 for each source, {num_sources} in all.")
    if not 0 <= args.validation_share < 1:
        parser.error(f"--validation_share must be in [0, 1), not {args.validation_share}.")
    if args.streaming and (not args.dataset_name or args.dataloader_num_workers > 1):
        parser.error("--streaming is for --dataset_name, read by at most one worker.")
    set_names = [Path(folder).resolve().name for folder in args.validation_dir]
    if len(set(set_names)) < len(set_names):
        parser.error(f"--validation_dir folders need names of their own, not {' and '.join(set_names)}.")
    for source in [*args.clean_dir, *args.noisy_dir, *args.gt_dir, *args.dataset_name]:
        for folder in (args.output_dir, *args.validation_dir):
            if Path(source).is_dir() and Path(folder).resolve().is_relative_to(Path(source).resolve()):
                parser.error(f"{folder} lies in {source}: training would learn from the images that it validates on.")
    if args.pretrained_model and args.prediction_type:
        parser.error("--pretrained_model comes with its own prediction type; leave --prediction_type out.")
    if args.push_to_hub and "/" not in (args.hub_model_id or ""):
        parser.error("--push_to_hub needs --hub_model_id ORG/NAME.")
    if find_checkpoints(args.output_dir) and not args.resume_from_checkpoint:
        parser.error(f"{args.output_dir} holds checkpoints: go on with --resume_from_checkpoint latest, or elsewhere.")
    return args


def predict_x0(unet: torch.nn.Module, pipeline, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    pixel_unshuffle = pipeline.config.pixel_unshuffle
    output = F.pixel_shuffle(unet(F.pixel_unshuffle(x_t, pixel_unshuffle), t).sample, pixel_unshuffle)
    return pipeline.scheduler.get_pred_original_sample(output, t, x_t)


def training_step(args, unet: torch.nn.Module, pipeline, teacher, batch: dict) -> torch.Tensor:
    """Return the loss of the network's x0_hat, from x_t on the line between the clean and the noisy images."""
    scheduler = pipeline.scheduler
    clean, noisy = (batch[name].float() / 127.5 - 1 for name in ("clean", "noisy"))
    u = batch["u"]
    t = scheduler.config.num_train_timesteps * (1 - u**2 if args.timestep_sampling == "far" else 1 - u)
    x_t = scheduler.add_noise(clean, noisy, t)
    x0_hat = predict_x0(unet, pipeline, x_t, t)
    weight = losses.noise_weight(clean, noisy) if args.loss_weighting == "noise" else 1.0
    if teacher is None:
        target = clean
    else:
        with torch.no_grad():
            target = predict_x0(teacher.unet, teacher, x_t, t)
    return getattr(losses, args.loss)(x0_hat, target, weight)


def main(args: argparse.Namespace):
    started = time.monotonic()
    output_dir = Path(args.output_dir)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=choose_precision(args.mixed_precision),
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=str(output_dir / "logs")),
    )
    check_launch(accelerator)
    asked, args.mixed_precision = args.mixed_precision, accelerator.mixed_precision
    is_main, on_cpu = accelerator.is_main_process, accelerator.device.type == "cpu"
    logger.setLevel(logging.INFO if is_main else logging.ERROR)
    set_seed(args.seed)
    if args.report_to != "none" and not accelerator.log_with:
        raise ValueError(f"{args.report_to} is not installed: pip install {args.report_to}, or give --report_to none.")
    if asked is None:
        precision = {"no": "float32"}.get(args.mixed_precision, args.mixed_precision)
        logger.info(f"Training in {precision}; --mixed_precision chooses otherwise.")
    num_threads = accelerator.num_processes * torch.get_num_threads()
    if on_cpu:
        if args.mixed_precision == "bf16" and not has_fast_bf16():
            logger.warning("This CPU only emulates bf16, which is several times slower: use --mixed_precision no.")
        if num_threads == 1 < os.cpu_count():
            logger.warning(
                f"One of {os.cpu_count()} cores is used; python examples/train.py uses all, without OMP_NUM_THREADS."
            )

    # 1. Model
    pipeline = build_pipeline(args)
    unet, scheduler = pipeline.unet, pipeline.scheduler
    teacher = load_teacher(args.teacher, scheduler).to(accelerator.device) if args.teacher else None
    if max(args.validation_inference_steps) > scheduler.config.num_train_timesteps:
        raise ValueError(f"--validation_inference_steps must be at most {scheduler.config.num_train_timesteps}.")
    for network in filter(None, (pipeline, teacher)):
        if any(crop % network.spatial_multiple for crop, _ in args.crop_size):
            raise ValueError(f"--crop_size must be made of multiples of {network.spatial_multiple} for this network.")
    unet.train()  # a pretrained model comes in evaluation mode
    unet.to(memory_format=torch.channels_last)  # convolutions are some 5% faster, on a GPU more
    optimizer = build_optimizer(args, unet)
    lr_scheduler = get_cosine_schedule_with_warmup(optimizer, args.lr_warmup_steps, args.max_train_steps)
    ema = EMAModel(unet.parameters(), decay=0.999, foreach=True, use_ema_warmup=True, power=0.75)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    # Not prepared by accelerate, which would advance it once per process; here it counts optimizer steps.
    accelerator.register_for_checkpointing(lr_scheduler, ema)

    # 2. Checkpoint to start from
    recipe = {
        "options": vars(args) | {"num_processes": accelerator.num_processes},
        "model": {k: v for k, v in pipeline.unet.config.items() if not k.startswith("_")}
        | {"pixel_unshuffle": pipeline.config.pixel_unshuffle, "prediction_type": scheduler.config.prediction_type},
    }
    step = 0
    if args.resume_from_checkpoint:
        latest = args.resume_from_checkpoint == "latest"
        checkpoints = find_checkpoints(output_dir) if latest else [Path(args.resume_from_checkpoint)]
        if checkpoints:
            step = load_checkpoint(accelerator, checkpoints[-1], recipe)
    ema.to(accelerator.device)  # a checkpoint's average is loaded to the CPU

    # 3. Data
    sources, validation_sets, held_out = load_data(args)
    batches = TrainingBatches(
        sources,
        batch_size=args.train_batch_size,
        crop_schedule=args.crop_size,
        num_batches=args.max_train_steps * args.gradient_accumulation_steps,
        seed=args.seed,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        # Noise is simulated by the data workers if the CPU has cores to spare, and where the network trains if not.
        device=None if on_cpu and num_threads < os.cpu_count() else accelerator.device,
    )
    loader = torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        sampler=range(step * args.gradient_accumulation_steps, len(batches)),
        num_workers=args.dataloader_num_workers,
        worker_init_fn=ignore_foreign_signals,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),  # or each start would draw from the generator that dropout uses
    )

    # 4. Logging and saving
    log_file, validations = output_dir / "log.jsonl", []
    if is_main:
        if args.push_to_hub:  # find a missing login now, not at the end
            create_repo(args.hub_model_id, exist_ok=True)
        output_dir.mkdir(parents=True, exist_ok=True)
        accelerator.init_trackers("gdd", {key: str(value) for key, value in vars(args).items()})
        remove_partial_folders(output_dir)
        if held_out:
            (output_dir / "held_out.txt").write_text("\n".join(held_out) + "\n", encoding="utf-8")
        validations = [line for line in rewind_log(log_file, step) if "psnr/noisy" in line]

    def log(values):
        accelerator.log(values, step=step)
        with log_file.open("a") as file:
            file.write(json.dumps({"step": step} | values) + "\n")

    def save_average(folder):
        num_processes = accelerator.num_processes
        card = training_card(args, num_processes, folder, step, sources, validation_sets, validations)
        with averaged_weights(ema, pipeline.unet):
            save_pipeline(pipeline, card, folder)

    def validate_average():
        """Validate the averaged weights, and save them in `best` if they are."""
        image_file = output_dir / "validation" / f"step-{step:06d}.png"
        with averaged_weights(ema, pipeline.unet), accelerator.autocast():
            scores = validate(pipeline, validation_sets, args.validation_inference_steps, image_file)
        log(scores)
        logger.info(f"step {step}: {format_scores(scores)}")
        # A resumed training may have other validation images; only scores on the same ones compare.
        metric = f"psnr/improved_{args.validation_inference_steps[0]}"
        earlier = [line.get(metric, 0) for line in validations if line["psnr/noisy"] == scores["psnr/noisy"]]
        validations.append({"step": step} | scores)
        if scores[metric] > max(earlier, default=0):
            save_average(output_dir / "best")

    if is_main and args.pretrained_model and step == 0:  # what there is to improve on
        validate_average()

    # 5. Train
    micro_losses, waited, num_pixels, stop = [], 0.0, 0, False
    progress = tqdm(total=args.max_train_steps, initial=step, disable=not is_main)
    # on the CPU, getting freed memory back from the system, page by page, takes 5% of a step
    memory = keep_freed_memory() if on_cpu else nullcontext()
    with memory, progress, stop_signals() as signals, logging_redirect_tqdm():
        loop_started = requested = time.monotonic()
        for batch in loader:
            waited += time.monotonic() - requested
            batch = send_to_device(batches.simulate(batch), accelerator.device)
            num_pixels += batch["clean"].numel() / 3
            with accelerator.accumulate(unet):
                loss = training_step(args, unet, pipeline, teacher, batch)
                micro_losses.append(accelerator.reduce(loss.detach(), "mean").item())
                if not math.isfinite(micro_losses[-1]):
                    files = ", ".join(dict.fromkeys(batch["files"]))
                    raise ArithmeticError(f"The loss is {micro_losses[-1]} in step {step + 1}, on a batch of {files}.")
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                lr_scheduler.step()
                ema.step(unet.parameters())
                step += 1
                if is_main:
                    loss = sum(micro_losses) / len(micro_losses)
                    log({"loss": loss, "learning_rate": lr_scheduler.get_last_lr()[0]})
                    progress.set_postfix(loss=f"{loss:.4f}")
                    progress.update()
                micro_losses = []

                # Each process receives its own signals and has its own clock, but all must stop at the same step.
                minutes = (time.monotonic() - started) / 60
                if signals or (args.max_train_minutes is not None and minutes > args.max_train_minutes):
                    accelerator.set_trigger()
                stop, done = accelerator.check_trigger(), step == args.max_train_steps
                if is_main and (step % args.validation_steps == 0 or done):
                    validate_average()
                if step % args.checkpointing_steps == 0 or stop or done:
                    folder = output_dir / f"checkpoint-{step}"
                    save_checkpoint(accelerator, folder, recipe, args.checkpoints_total_limit)
                    if is_main:
                        save_average(output_dir)
                if stop:
                    break
            requested = time.monotonic()
    seconds = time.monotonic() - loop_started
    logger.info(
        f"{'Done' if step == args.max_train_steps else 'Stopped'} after step {step}: "
        f"{num_pixels / 1e6 / seconds:.3f} Mpx/s on each of {accelerator.num_processes} processes, "
        f"{waited / seconds:.1%} of the time waiting for data."
    )

    # 6. Publish
    if args.push_to_hub and is_main:
        try:
            publish(output_dir, args.hub_model_id)
        except RuntimeError as error:
            raise ValueError(f"{output_dir} is trained but not published: {error}") from error
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main(parse_args())
    except (ValueError, OSError, ArithmeticError) as error:
        text = str(error)
        if text.startswith("Caught "):  # in a worker, with its whole traceback: the sentence comes last
            text = text.rstrip().splitlines()[-1].partition(": ")[2]
        sys.exit(f"train.py: {text}")
    except KeyboardInterrupt:  # from the first step on, a checkpoint is saved instead
        sys.exit("train.py: stopped before the first step.")
