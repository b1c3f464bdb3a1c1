#!/usr/bin/env python
"""Train a general denoising diffusion model on noisy and clean pairs, or on clean photographs alone.

    accelerate launch examples/train.py --clean_dir photos/ --output_dir my-gdd

The output folder is a pipeline that `RealDenoisePipeline.from_pretrained` loads. Stop it at any moment with Ctrl-C and go
on with `--resume_from_checkpoint latest`: the result is the same, bit for bit on one CPU process. See examples/README.md.
"""

import argparse
import json
import logging
import math
import os
import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import diffusers
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from diffusers.utils import make_image_grid
from huggingface_hub import ModelCard, ModelCardData, create_repo, upload_folder
from PIL import Image
from tqdm.auto import tqdm

from gdd_diffusers import losses
from gdd_diffusers.camera_noise import CameraNoise
from gdd_diffusers.metrics import psnr, ssim
from gdd_diffusers.paired_data import Pictures, Source, TrainingBatches, load_clean, load_pairs
from gdd_diffusers.pipeline_real_denoise import RealDenoisePipeline
from gdd_diffusers.scheduling_interpolation import InterpolationScheduler
from gdd_diffusers.unet_local import LocalUNet2DModel


logger = get_logger(__name__)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--clean_dir", action="append", default=[], help="Clean photographs to simulate noise on.")
    data.add_argument("--noise_preset", default="mixed", help="Which camera `CameraNoise` simulates.")
    data.add_argument("--noisy_dir", action="append", default=[], help="Noisy pictures of real pairs.")
    data.add_argument("--gt_dir", action="append", default=[], help="Their clean partners, of the same names.")
    data.add_argument("--validation_dir", help="Folder of held-out pairs, with subfolders noisy/ and clean/.")
    data.add_argument("--crop_size", default="96", help="Pixels, or a schedule: 96:0.5,128:0.8,192 goes by share.")
    data.add_argument("--dataloader_num_workers", type=int, default=0, help="0 prepares batches in the main process.")
    model = parser.add_argument_group("model")
    model.add_argument("--model_config", default="gdd-small", help="A JSON file or a name in examples/configs.")
    model.add_argument("--pretrained_model", help="Folder or Hub repo of a pipeline to go on from.")
    model.add_argument("--prediction_type", choices=["sample", "flow_prediction"], default="sample")
    train = parser.add_argument_group("training")
    train.add_argument("--output_dir", required=True)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--train_batch_size", type=int, default=16, help="Per process, at the first crop size.")
    train.add_argument("--gradient_accumulation_steps", type=int, default=1)
    train.add_argument("--max_train_steps", type=int, default=20_000, help="Length of the whole training.")
    train.add_argument("--max_train_minutes", type=float, help="Stop after this long, to be resumed.")
    train.add_argument("--loss", choices=["charbonnier", "l1", "l2"], default="charbonnier")
    train.add_argument("--timestep_sampling", choices=["uniform", "far"], default="uniform", help="far: more near T.")
    train.add_argument("--learning_rate", type=float, default=1e-3)
    train.add_argument("--lr_scheduler", default="cosine")
    train.add_argument("--lr_warmup_steps", type=int, default=200)
    train.add_argument("--adam_beta2", type=float, default=0.99)
    train.add_argument("--adam_weight_decay", type=float, default=0.0)
    train.add_argument("--max_grad_norm", type=float, default=1.0)
    train.add_argument("--ema_decay", type=float, default=0.999)
    train.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], default=None)
    saving = parser.add_argument_group("validating and saving")
    saving.add_argument("--validation_steps", type=int, default=1000)
    saving.add_argument("--num_validation_images", type=int, default=8)
    saving.add_argument("--validation_inference_steps", type=int, nargs="+", default=[1, 4])
    saving.add_argument("--checkpointing_steps", type=int, default=500)
    saving.add_argument("--checkpoints_total_limit", type=int, default=2)
    saving.add_argument("--resume_from_checkpoint", help="A checkpoint's folder, or `latest`.")
    saving.add_argument("--report_to", default="tensorboard", help="Any tracker of accelerate, or none.")
    saving.add_argument("--license", default="unknown", help="Of the weights, for the model card.")
    saving.add_argument("--push_to_hub", action="store_true")
    saving.add_argument("--hub_model_id")
    saving.add_argument("--hub_private_repo", action="store_true")
    args = parser.parse_args(argv)

    if len(args.noisy_dir) != len(args.gt_dir):
        parser.error("Give one --gt_dir for each --noisy_dir.")
    if not (args.clean_dir or args.noisy_dir):
        parser.error("Give something to learn from: --clean_dir, or --noisy_dir and --gt_dir.")
    return args


def build_pipeline(args) -> RealDenoisePipeline:
    if args.pretrained_model:
        return RealDenoisePipeline.from_pretrained(args.pretrained_model)
    file = Path(args.model_config)
    if not file.is_file():
        file = Path(__file__).parent / "configs" / f"{args.model_config}.json"
    config = json.loads(file.read_text())
    model_class = {c.__name__: c for c in (LocalUNet2DModel, diffusers.UNet2DModel)}[config.pop("_class_name")]
    pixel_unshuffle = config.pop("pixel_unshuffle", 1)
    scheduler = InterpolationScheduler(prediction_type=args.prediction_type)
    return RealDenoisePipeline(model_class(**config), scheduler, pixel_unshuffle=pixel_unshuffle)


def crop_schedule(text: str) -> list[tuple[int, float]]:
    """`96:0.5,128` to [(96, 0.5), (128, 1.0)]: crop sizes and the share of the training that each one ends at."""
    pairs = [part.partition(":") for part in text.split(",")]
    return [(int(size), float(until or 1)) for size, _, until in pairs]


@contextmanager
def weights_of(ema, unet):
    """The network with its averaged weights."""
    ema.store(unet.parameters())
    ema.copy_to(unet.parameters())
    try:
        yield
    finally:
        ema.restore(unet.parameters())


def centre_crop(picture, size=256):
    """uint8 [H, W, 3] to float [1, 3, h, w] in [0, 1], sides at most `size`."""
    top, left = (max(0, side - size) // 2 for side in picture.shape[:2])
    crop = picture[top : top + size, left : left + size]
    return torch.from_numpy(crop.copy()).permute(2, 0, 1)[None] / 255


def load_validation_pairs(dataset, simulator, count) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(noisy, clean) crops spread evenly over a data set, always the same."""
    count = min(count, len(dataset))
    pictures = Pictures(dataset.select([i * len(dataset) // count for i in range(count)]))
    pairs = []
    for picture in filter(None, (pictures[i] for i in range(count))):
        clean = centre_crop(picture["clean"])
        if "noisy" in picture:
            noisy = centre_crop(picture["noisy"])
        else:
            clean, noisy = simulator(clean, generator=torch.Generator().manual_seed(len(pairs)))
        pairs.append((noisy, clean))
    return pairs


def validate(pipeline, pairs, inference_steps, picture_file) -> dict[str, float]:
    """Mean PSNR and SSIM under both rules; writes noisy, denoised and clean pictures side by side, one pair a row."""
    scores, rows = {}, []
    variants = [(n, rule) for n in inference_steps for rule in ("improved", "origin")]
    for index, (noisy, clean) in enumerate(pairs):
        outputs = {"noisy": noisy}
        for n, rule in variants:
            pipeline.scheduler = InterpolationScheduler.from_config(pipeline.scheduler.config, step_rule=rule)
            outputs[f"{rule}_{n}"] = pipeline(noisy, num_inference_steps=n, output_type="pt").images
        for name, output in outputs.items():
            output = output.cpu()
            scores.setdefault(f"psnr/{name}", []).append(psnr(output, clean).item())
            scores.setdefault(f"ssim/{name}", []).append(ssim(output, clean).item())
        if index < 8:
            shown = (noisy, next(v for k, v in outputs.items() if k != "noisy").cpu(), clean)
            rows += [(picture[0].permute(1, 2, 0) * 255).round().byte().numpy() for picture in shown]
    picture_file.parent.mkdir(exist_ok=True)
    make_image_grid([Image.fromarray(row) for row in rows], rows=len(rows) // 3, cols=3, resize=256).save(picture_file)
    return {name: sum(values) / len(values) for name, values in scores.items()}


def find_checkpoints(output_dir: Path) -> list[Path]:
    folders = (p for p in output_dir.glob("checkpoint-*") if p.suffix != ".partial")
    return sorted(folders, key=lambda p: int(p.name.split("-")[1]))


def save_checkpoint(accelerator, args, step, recipe):
    """Written beside its place and renamed when whole, so that `latest` is whole whatever happens."""
    output_dir = Path(args.output_dir)
    folder = output_dir / f"checkpoint-{step}"
    if folder.exists():
        return
    partial = output_dir / f"checkpoint-{step}.partial"
    try:
        accelerator.save_state(str(partial))
        if accelerator.is_main_process:
            (partial / "recipe.json").write_text(json.dumps(recipe, indent=2))
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"checkpoint-{step} could not be written ({error}). The checkpoints before it are whole: make room and go on "
            "with --resume_from_checkpoint latest."
        ) from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        partial.rename(folder)
        if args.checkpoints_total_limit:
            for old in find_checkpoints(output_dir)[: -args.checkpoints_total_limit]:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


def save_pipeline(pipeline, args, recipe, validations):
    """Save the pipeline and its card file by file into the output folder, so that a crash leaves none half-written."""
    output_dir = Path(args.output_dir)
    partial = output_dir / "pipeline.partial"
    pipeline.save_pretrained(partial)
    card = ModelCardData(
        license=args.license, library_name="diffusers", pipeline_tag="image-to-image", tags=["denoising"]
    )
    text = f"---\n{card.to_yaml()}\n---\n\n# {output_dir.name}\n\n" + "\n".join(
        [
            "Removes noise from photographs.",
            "",
            "```py",
            "from gdd_diffusers import RealDenoisePipeline",
            f'pipe = RealDenoisePipeline.from_pretrained("{args.hub_model_id or output_dir.name}")',
            "```",
            "",
            "Training recipe:",
            "",
            "```json",
            json.dumps(recipe, indent=2),
            "```",
            "",
        ]
        + [
            f"- step {line['step']}: " + ", ".join(f"{k} {v:.3f}" for k, v in line.items() if k != "step")
            for line in validations
        ]
    )
    ModelCard(text).save(partial / "README.md")
    for file in [p for p in partial.rglob("*") if p.is_file()]:
        target = output_dir / file.relative_to(partial)
        target.parent.mkdir(exist_ok=True)
        os.replace(file, target)
    shutil.rmtree(partial)


def main(args):
    started = time.monotonic()
    output_dir = Path(args.output_dir)
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=str(output_dir / "logs")),
    )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    set_seed(args.seed)

    # Data
    simulator = CameraNoise(args.noise_preset)
    sources = [(load_clean(folder), simulator) for folder in args.clean_dir]
    sources += [(load_pairs(noisy, gt), None) for noisy, gt in zip(args.noisy_dir, args.gt_dir, strict=True)]
    if args.validation_dir:
        held_out = load_pairs(Path(args.validation_dir) / "noisy", Path(args.validation_dir) / "clean")
    else:
        held_out = sources[0][0]
    validation_pairs = load_validation_pairs(held_out, simulator, args.num_validation_images)
    batches = TrainingBatches(
        [Source(dataset, len(dataset), simulator) for dataset, simulator in sources],
        args.train_batch_size,
        crop_schedule(args.crop_size),
        args.max_train_steps * args.gradient_accumulation_steps,
        seed=args.seed,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )

    # Model
    pipeline = build_pipeline(args)
    unet, scheduler = pipeline.unet, pipeline.scheduler
    pixel_unshuffle, T = pipeline.config.pixel_unshuffle, scheduler.config.num_train_timesteps
    optimizer = torch.optim.AdamW(
        unet.parameters(), args.learning_rate, betas=(0.9, args.adam_beta2), weight_decay=args.adam_weight_decay
    )
    lr_scheduler = get_scheduler(
        args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
    )
    ema = EMAModel(unet.parameters(), args.ema_decay, use_ema_warmup=True, power=0.75)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(lr_scheduler, ema)
    loss_function = getattr(losses, args.loss)
    recipe = {"args": vars(args), "unet": dict(pipeline.unet.config)}

    # Where to begin
    start, log_file = 0, output_dir / "log.jsonl"
    output_dir.mkdir(parents=True, exist_ok=True)
    if args.resume_from_checkpoint:
        checkpoints = find_checkpoints(output_dir)
        if args.resume_from_checkpoint != "latest":
            checkpoints = [Path(args.resume_from_checkpoint)]
        if checkpoints:
            accelerator.load_state(str(checkpoints[-1]))
            start = int(checkpoints[-1].name.split("-")[1])
            logger.info(f"Going on from {checkpoints[-1]}.")
    if accelerator.is_main_process:
        accelerator.init_trackers(
            "gdd", {k: v if isinstance(v, int | float | str) else str(v) for k, v in vars(args).items()}
        )
        # What was logged after the checkpoint will be done again.
        lines = log_file.read_text().splitlines() if log_file.exists() else []
        lines = [line for line in lines if json.loads(line)["step"] <= start]
        log_file.write_text("".join(line + "\n" for line in lines))
        validations = [json.loads(line) for line in lines if "psnr/noisy" in line]

    def log(step, values):
        accelerator.log(values, step=step)
        with log_file.open("a") as file:
            file.write(json.dumps({"step": step} | values) + "\n")

    def save(step):
        save_checkpoint(accelerator, args, step, recipe)
        if accelerator.is_main_process:
            with weights_of(ema, pipeline.unet):
                save_pipeline(pipeline, args, recipe, validations)

    stop_signals = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stop_signals.append(number))

    micro_steps = range(start * args.gradient_accumulation_steps, len(batches))
    loader = torch.utils.data.DataLoader(
        batches, batch_size=None, sampler=micro_steps, num_workers=args.dataloader_num_workers
    )
    progress = tqdm(total=args.max_train_steps, initial=start, disable=not accelerator.is_main_process)
    step, losses_of_step, asked_at = start, [], time.monotonic()
    waited = 0.0
    for batch in loader:
        waited += time.monotonic() - asked_at
        clean, noisy = (batch[k].to(accelerator.device).float() / 127.5 - 1 for k in ("clean", "noisy"))
        u = batch["u"].to(accelerator.device)
        t = T * (1 - u**2 if args.timestep_sampling == "far" else 1 - u)
        with accelerator.accumulate(unet):
            x_t = scheduler.add_noise(clean, noisy, t)
            output = F.pixel_shuffle(unet(F.pixel_unshuffle(x_t, pixel_unshuffle), t).sample, pixel_unshuffle)
            loss = loss_function(scheduler.get_pred_original_sample(output, t, x_t), clean)
            losses_of_step.append(accelerator.reduce(loss.detach(), "mean").item())
            if not math.isfinite(losses_of_step[-1]):
                raise ArithmeticError(f"The loss is {losses_of_step[-1]} in step {step + 1} on {batch['files']}.")
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            lr_scheduler.step()
            ema.step(unet.parameters())
            step += 1
            loss = sum(losses_of_step) / len(losses_of_step)
            losses_of_step = []
            if accelerator.is_main_process:
                log(step, {"loss": loss, "learning_rate": lr_scheduler.get_last_lr()[0]})
            progress.update()
            progress.set_postfix(loss=f"{loss:.4f}", waiting=f"{waited / (time.monotonic() - started):.1%}")
            out_of_time = args.max_train_minutes and time.monotonic() - started > 60 * args.max_train_minutes
            stop = torch.tensor(float(bool(stop_signals or out_of_time)), device=accelerator.device)
            stop = accelerator.reduce(stop, "sum").item() > 0
            if step % args.validation_steps == 0 or step == args.max_train_steps:
                if accelerator.is_main_process:
                    with weights_of(ema, pipeline.unet), accelerator.autocast():
                        scores = validate(
                            RealDenoisePipeline(pipeline.unet, scheduler, pixel_unshuffle=pixel_unshuffle),
                            validation_pairs,
                            args.validation_inference_steps,
                            output_dir / "validation" / f"step-{step:06d}.png",
                        )
                    validations.append({"step": step} | scores)
                    log(step, scores)
                    logger.info(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in scores.items()))
            if step % args.checkpointing_steps == 0 or stop or step == args.max_train_steps:
                save(step)
            if stop:
                logger.info(f"Stopped after step {step}; go on with --resume_from_checkpoint latest.")
                break
        asked_at = time.monotonic()
    progress.close()
    if args.push_to_hub and accelerator.is_main_process:
        repo = create_repo(args.hub_model_id or output_dir.name, private=args.hub_private_repo, exist_ok=True).repo_id
        upload_folder(repo_id=repo, folder_path=output_dir, ignore_patterns=["checkpoint-*", "logs/*", "*.partial/*"])
    accelerator.end_training()


if __name__ == "__main__":
    main(parse_args())
