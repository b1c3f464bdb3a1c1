"""The optimizers that train.py offers."""

import torch


def build_optimizer(args, unet: torch.nn.Module) -> torch.optim.Optimizer:
    """
    AdamW, or Muon (https://kellerjordan.github.io/posts/muon/), which makes each update of a hidden layer's kernels,
    taken as a matrix of [out, in x 3 x 3], orthogonal. All other parameters get AdamW with Muon too. Updates are
    scaled to the size of AdamW's (Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982), so that one
    `--learning_rate` is for both.
    """
    adamw = {"betas": (0.9, args.adam_beta2), "weight_decay": args.adam_weight_decay}
    if args.optimizer == "adamw":
        return torch.optim.AdamW(unet.parameters(), args.learning_rate, **adamw)
    try:
        from pytorch_optimizer import Muon
    except ImportError as error:
        raise ValueError('--optimizer muon needs a package: pip install "gdd-diffusers[train]"') from error
    hidden, others = [], []
    for name, parameter in unet.named_parameters():
        is_hidden = parameter.ndim == 4 and not name.startswith(("conv_in.", "conv_out."))
        (hidden if is_hidden else others).append(parameter)
    return Muon(
        [
            {"params": hidden, "use_muon": True, "use_adjusted_lr": True, "weight_decay": args.adam_weight_decay},
            {"params": others, "use_muon": False, "lr": args.learning_rate, **adamw},
        ],
        lr=args.learning_rate,
    )
