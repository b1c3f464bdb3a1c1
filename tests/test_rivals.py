import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMPipeline, DDIMScheduler
from PIL import Image
from torch.autograd import gradcheck
from torch.func import functional_call


EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import rivals  # noqa: E402
from evaluation.peers import load_peer, short_name  # noqa: E402
from rivals import measure, report  # noqa: E402
from rivals.ddpm import DDPM  # noqa: E402
from rivals.dncnn import DnCNN  # noqa: E402
from rivals.fc_aide import FCAIDE  # noqa: E402
from rivals.gcbd import GCBD, even_noise  # noqa: E402
from rivals.image_transformer import ImageTransformer  # noqa: E402
from rivals.mlp import MLP  # noqa: E402
from rivals.nlrn import NLRN  # noqa: E402
from rivals.tnrd import TNRD  # noqa: E402


CPU = torch.device("cpu")


def randomize(model, std=0.1):
    """Draw all parameters at random, so that none is zero by construction."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_rivals_train_and_denoise_images_of_any_size(name):
    model = rivals.build(name)
    clean = torch.full((1, 3, 64, 64), 0.5)
    noisy = clean + 0.1 * torch.randn_like(clean)
    loss = model.loss(clean, noisy)
    loss.backward()
    assert torch.isfinite(loss)
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    grouped = [p for group in model.parameter_groups() for p in group["params"]]
    assert len(grouped) == len([*model.parameters()])

    model.eval()
    image = torch.rand(1, 3, 21, 34)
    denoised = model.denoise(image)
    assert denoised.shape == image.shape and 0 <= denoised.min() <= denoised.max() <= 1
    assert not denoised.requires_grad


def test_large_images_are_denoised_in_tiles():
    model = randomize(DnCNN(depth=4, channels=4)).eval()
    image = torch.rand(1, 3, 70, 90)
    whole = model.denoise(image)
    model.tile_size, model.tile_overlap = 32, 16
    torch.testing.assert_close(model.denoise(image), whole, atol=1e-5, rtol=0)


def test_number_of_parameters_in_the_papers():
    """docs/rivals.md names the source of each number."""
    # in each of 5 stages 48 filters, which are combinations of 48 cosines, 63 Gaussians for each, and the reaction
    assert count(TNRD(5, 48, 7, image_channels=1)) == 5 * (48 * 48 + 48 * 63 + 1) == 26_645
    assert count(DnCNN(17, 64, image_channels=1)) == 556_097
    assert count(NLRN(12, 128, 64, 45, image_channels=1)) == 340_099 - 2  # the authors normalise the input, too
    # The authors store whole filters of 3x3, of which a mask takes a third, or two thirds in the first layer.
    fc_aide = FCAIDE(10, 64, image_channels=1)
    masked = sum(9 * m.weight[..., 0].numel() - m.weight.numel() for m in fc_aide.modules() if hasattr(m, "taps"))
    assert count(fc_aide) + masked == 1_098_690
    with torch.device("meta"):
        assert count(ImageTransformer(180, (6,) * 6, 6, pixel_unshuffle=1)) == pytest.approx(12e6, rel=0.02)
        mlp = MLP(39, 17, (3072, 3072, 2559, 2047), stride=3, image_channels=1)
    widths = [layer.weight.shape[::-1] for layer in mlp.layers[::2]]
    assert widths == [(39 * 39, 3072), (3072, 3072), (3072, 2559), (2559, 2047), (2047, 17 * 17)]


def test_cost_of_the_rivals_is_comparable():
    names = "gdd", "dncnn", "nlrn", "swin2sr", "fc-aide", "gcbd", "tnrd", "mlp"
    cost = {name: rivals.build(name).eval().flops_per_pixel() for name in names}
    assert cost["gdd"] == pytest.approx(78e3, rel=0.05)
    paper_sized = rivals.build("dncnn-64").eval()  # two operations for each weight
    assert paper_sized.flops_per_pixel() == pytest.approx(2 * count(paper_sized), rel=0.01)
    assert all(cost["gdd"] / 2.5 < flops < 2.5 * cost["gdd"] for flops in cost.values()), cost


def test_ddpm_has_the_noise_of_the_paper():
    scheduler = DDPM().scheduler
    assert len(scheduler.betas) == 1000 and scheduler.config.prediction_type == "epsilon"
    torch.testing.assert_close(scheduler.betas, torch.linspace(1e-4, 0.02, 1000))


def test_window_of_mlp_is_that_of_the_authors():
    window = MLP(39, 17, (8,), stride=3, image_channels=1).window.view(17, 17)
    distance = torch.arange(17) - 8
    torch.testing.assert_close(window[8], torch.exp(-(distance**2) / (2 * 4**2)))  # 8 px are two standard deviations


def test_mlp_averages_overlapping_patches():
    model = MLP(noisy_size=5, clean_size=3, hidden=(), stride=2)
    with torch.no_grad():  # a layer that returns the center of its patch
        places = F.pad(torch.eye(27).view(27, 3, 3, 3), (1,) * 4)
        model.layers[0].weight.copy_(places.flatten(1))
        model.layers[0].bias.zero_()
    image = torch.rand(1, 3, 12, 17)
    torch.testing.assert_close(model.denoise(image), image)


@pytest.mark.parametrize(
    "model", [TNRD(2, 3, 3, image_channels=1), NLRN(2, 3, 2, 3, image_channels=1)], ids=["TNRD", "NLRN"]
)
def test_gradients_are_those_of_finite_differences(model):
    model = randomize(model, std=0.5).double()
    names, parameters = zip(*model.named_parameters(), strict=True)

    def output(noisy, *values):
        return functional_call(model, dict(zip(names, values, strict=True)), noisy)

    assert gradcheck(output, (torch.rand(1, 1, 5, 6, dtype=torch.float64, requires_grad=True), *parameters))


def test_influence_functions_of_tnrd_are_sums_of_gaussians():
    stage = randomize(TNRD(1, 2, 3, image_channels=1)).stages[0]
    z = torch.linspace(-20, 20, 50).expand(1, 2, 1, -1)
    mu = torch.arange(-31, 32)
    expected = torch.einsum("nj,bnyxj->bnyx", stage.weights, torch.exp(-((z[..., None] - mu) ** 2) / 2))
    torch.testing.assert_close(stage.influence(z), expected, atol=1e-3, rtol=0)


def test_tnrd_leaves_even_colours_as_they_are():
    model = randomize(TNRD(2, 24, 5), std=0.3)
    even = torch.tensor([0.8, 0.3, 0.1])[:, None, None].expand(1, 3, 30, 34)
    inside = ..., slice(8, -8), slice(8, -8)  # of what the border has an influence on
    torch.testing.assert_close(model(even)[inside], even[inside], atol=1e-4, rtol=0)


def test_a_pixel_changes_nothing_in_its_own_affine_map_of_fc_aide():
    model = randomize(FCAIDE(depth=4, channels=6))
    noisy = torch.rand(1, 3, 15, 17)
    changed = noisy.clone()
    changed[..., 7, 8] = 1 - noisy[..., 7, 8]
    with torch.no_grad():
        (a, b), (a2, b2) = model.affine(noisy), model.affine(changed)
    torch.testing.assert_close(a2[..., 7, 8], a[..., 7, 8], atol=0, rtol=0)
    torch.testing.assert_close(b2[..., 7, 8], b[..., 7, 8], atol=0, rtol=0)
    neighbours = torch.ones(15, 17, dtype=torch.bool)
    neighbours[7, 8] = False
    unchanged = ((a2 == a) & (b2 == b)).all((0, 1)) & neighbours
    assert not unchanged[6:9, 7:10].any()  # all eight neighbours see it
    expected = a2[..., 7, 8] * changed[..., 7, 8] + b2[..., 7, 8]
    torch.testing.assert_close(model(changed)[..., 7, 8], expected)


def test_fc_aide_estimates_its_error_without_bias():
    model = randomize(FCAIDE(depth=2, channels=4), std=0.3)
    clean, sigma = torch.rand(1, 3, 1, 1).expand(1, 3, 256, 256), 0.2
    noisy = clean + sigma * torch.randn(clean.shape)
    with torch.no_grad():
        error = F.mse_loss(model(noisy), clean)
        torch.testing.assert_close(model.estimated_error(noisy, sigma), error, atol=2e-3, rtol=0)


def test_fc_aide_adapts_to_the_image_alone():
    model = FCAIDE(depth=2, channels=4).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clean = torch.full((1, 3, 48, 48), 0.5)
    noisy = clean + 0.1 * torch.randn(clean.shape)
    adapted = model.denoise(noisy, adaptation_steps=30)
    assert F.mse_loss(adapted, clean) < F.mse_loss(model.denoise(noisy), clean)
    torch.testing.assert_close(dict(model.state_dict()), before)  # the next image begins anew


def test_gcbd_takes_the_noise_of_even_areas():
    noise = 0.05 * torch.randn(1, 3, 64, 128)
    image = 0.5 + noise
    image[..., 64:] += 0.4 * (torch.arange(64) % 32 < 16)  # stripes
    torch.testing.assert_close(even_noise(image), noise[..., :64] - noise[..., :64].mean((2, 3), keepdim=True))


def test_gcbd_trains_each_network_by_its_own_loss():
    model = GCBD(width=4)
    real, made = torch.randn(2, 3, 64, 64), model.generator(torch.randn(2, 100, 1, 1))
    critic, generator = [*model.critic.parameters()], [*model.generator.parameters()]
    of_critic = torch.autograd.grad(model.generator_loss(made), critic, allow_unused=True, retain_graph=True)
    of_generator = torch.autograd.grad(model.critic_loss(real, made.detach()), generator, allow_unused=True)
    assert not any(gradient is not None for gradient in (*of_critic, *of_generator))


def test_ddim_equals_the_pipeline_of_diffusers(monkeypatch):
    model = DDPM(conditional=False).eval()
    randomize(model, std=0.05)
    model.unet.register_to_config(sample_size=16)
    pipe = DDIMPipeline(model.unet, DDIMScheduler.from_config(model.scheduler.config))
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 4, "use_clipped_model_output": True}
    expected = pipe(generator=torch.manual_seed(3), output_type="np", **options).images
    expected = F.pixel_shuffle(torch.from_numpy(expected).movedim(-1, 1), 2)

    noise = torch.randn(1, 12, 16, 16, generator=torch.manual_seed(3))
    monkeypatch.setattr(model, "matching_timestep", lambda noisy: 999)  # the whole walk, from pure noise
    noisy = F.pixel_shuffle(noise, 2) / model.scheduler.alphas_cumprod[750].sqrt()
    with torch.no_grad():
        result = model.sample(noisy, 4, "ddim", torch.manual_seed(0))
    torch.testing.assert_close((result / 2 + 0.5).clamp(0, 1), expected, atol=1e-5, rtol=0)


def test_ddpm_starts_where_the_noise_is_that_of_the_image():
    model = DDPM(conditional=False)
    noisy = 0.2 * torch.randn(1, 3, 64, 64)
    alpha = model.scheduler.alphas_cumprod[model.matching_timestep(noisy)]
    assert ((1 - alpha) / alpha).sqrt() == pytest.approx(0.2, rel=0.05)


DNCNN_OF_DEEPINV = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
import evaluation  # lets torchvision load beside any torch
import deepinv.models
from rivals.dncnn import DnCNN

torch.manual_seed(0)
ours = DnCNN(depth=5, channels=8)
for parameter in ours.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
ours(torch.rand(4, 3, 32, 32))  # for the statistics of the normalisation
ours.eval()

# deepinv has no normalisation, which is part of the weights then, and adds what the network returns
theirs = deepinv.models.DnCNN(depth=5, nf=8, pretrained=None)
first, _, *middle, last = ours.layers
theirs.in_conv.load_state_dict(first.state_dict())
for conv, norm, target in zip(middle[::3], middle[1::3], theirs.conv_list):
    target.load_state_dict(torch.nn.utils.fuse_conv_bn_eval(conv, norm).state_dict())
theirs.out_conv.load_state_dict({key: -value for key, value in last.state_dict().items()})
image = torch.rand(1, 3, 40, 30)
with torch.no_grad():
    torch.testing.assert_close(ours(image), theirs(image), atol=1e-5, rtol=0)
"""


@pytest.mark.slow
def test_dncnn_equals_that_of_deepinv():
    folder = Path(sys.prefix) / "peers"
    if not folder.is_dir():
        pytest.skip("make peers installs deepinv")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", DNCNN_OF_DEEPINV, EXAMPLES]
    process = subprocess.run(command, env=env, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def start_training(clean_dir, output_dir, *args):
    command = [sys.executable, EXAMPLES / "rivals" / "train.py", "--clean_dir", clean_dir, "--output_dir", output_dir]
    command += ["--batch_size", "2", "--num_validation_images", "1", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_training_is_resumed_and_measured(clean_dir, tmp_path):
    args = clean_dir, tmp_path / "out", "--rival", "dncnn", "--crop_size", 32, "--minutes", 0.1
    process = start_training(*args)
    folder = tmp_path / "out" / "dncnn"
    while not (folder / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    process.kill()
    process.communicate()
    assert "go on with --resume" in start_training(*args).communicate()[1]
    process = start_training(*args, "--resume")
    assert process.communicate() and process.returncode == 0

    summary = json.loads((folder / "training.json").read_text())
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert summary["seconds"] >= 6 and summary["pixels"] == summary["steps"] * 2 * 32**2
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert sum("psnr" in line for line in lines) <= 10
    assert not (folder / "checkpoint.pt").exists()

    denoise, takes_sigma = load_peer(f"rival:{folder}", CPU)
    image = torch.rand(20, 30, 3)
    expected = rivals.load(folder).denoise(image.movedim(-1, 0)[None])[0].movedim(0, -1)
    torch.testing.assert_close(torch.from_numpy(denoise(image.numpy())), expected)
    assert not takes_sigma

    report = [sys.executable, EXAMPLES / "rivals" / "report.py", "--rivals_dir", folder.parent]
    report += ["--output_dir", tmp_path / "plots"]
    printed = subprocess.run(report, capture_output=True, text=True, check=True).stdout
    assert f"| dncnn | 36 | 71 | {summary['seconds'] / 60:.3g} | {summary['steps']} |" in printed
    assert (tmp_path / "plots" / "training.png").exists()


def save_trained(name, rivals_dir):
    """Save a rival of random weights as if it were trained."""
    model = rivals.build(name)
    rivals.save(model, name, rivals_dir / name)
    summary = {"parameters": count(model), "seconds": 60.0, "steps": 2, "pixels": 1e6, "psnr": 30.0}
    (rivals_dir / name / "training.json").write_text(json.dumps(summary))
    lines = [{"step": 1, "seconds": 30.0, "loss": 1.0}, {"step": 2, "seconds": 60.0, "psnr": 30.0}]
    (rivals_dir / name / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.mark.slow
def test_trained_rivals_are_measured_and_others_left_out(clean_dir, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    shutil.copytree(clean_dir, tmp_path / "data" / "kodak24")
    rivals_dir, out = tmp_path / "rivals", tmp_path / "out"
    for name in ("gdd", "dncnn"):
        save_trained(name, rivals_dir)
    (rivals_dir / "mlp").mkdir()
    (rivals_dir / "mlp" / "checkpoint.pt").touch()
    args = ["--rivals_dir", rivals_dir, "--data_dir", tmp_path / "data", "--output_dir", out]
    args += ["--num_images", 1, "--num_small_images", 1, "--num_images_of_steps", 1]
    measure.main(measure.parse_args([str(arg) for arg in args]))

    said = capsys.readouterr()
    assert "mlp is left out: its training is not finished." in said.err
    assert "nlrn is left out: its training is not begun." in said.err
    assert f"RENOIR is left out: there is no {tmp_path / 'data' / 'renoir-val'}." in said.err
    table = [line for line in said.out.partition("| PSNR, dB / SSIM |")[2].splitlines() if "|" in line]
    assert table[0].count("1 image") == 4  # white noise in colour and grey, of a phone, and on 32x32
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in table[1:]}
    figures = json.loads((out / "images" / "results.json").read_text())[0]["methods"]
    psnr = {method["name"]: method["figures"]["psnr"] for method in figures}
    for name in ("noisy input", "bm3d, blind", "gdd", "dncnn"):
        assert cells[name][0].startswith(f"{psnr[name]:.2f} / ")
    assert cells["dncnn"][-2:] == ["36", "71"] and cells["bm3d, blind"][-2:] == ["", ""]
    once, ten_times = (float(cells[name][-1]) for name in ("gdd", "gdd (steps=10,rule=origin)"))
    assert ten_times == pytest.approx(10 * once, rel=0.02)
    for name in ("training.png", "steps.png", "crops.png"):
        assert Image.open(out / name).size > (100, 100)


def test_a_folder_without_trained_rivals_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no trained rival"):
        report.main(report.parse_args(["--rivals_dir", str(tmp_path)]))


def test_curves_of_steps_are_told_apart_by_their_options():
    assert report.split_name("ddpm (steps=5,sampler=ddpm)") == ("ddpm", {"steps": 5, "sampler": "ddpm"})
    assert report.split_name("bm3d, blind") == ("bm3d, blind", {})


@pytest.mark.slow
def test_a_failing_rival_does_not_stop_the_others(clean_dir, tmp_path):
    names = "--rival", "gcbd", "--rival", "mlp"  # gcbd needs blocks of 64 px
    process = start_training(clean_dir, tmp_path / "out", *names, "--crop_size", 32, "--minutes", 0.01)
    errors = process.communicate()[1]
    assert process.returncode == 1 and "gcbd failed" in errors and "Traceback" in errors
    assert (tmp_path / "out" / "mlp" / "model.safetensors").exists()


def test_options_of_rivals(tmp_path):
    rivals.save(rivals.build("gdd"), "gdd", tmp_path / "gdd")
    name = f"rival:{tmp_path}/gdd:steps=2,rule=origin"
    denoise, _ = load_peer(name, CPU)
    assert denoise(torch.rand(16, 16, 3).numpy()).shape == (16, 16, 3)
    assert short_name(name) == "gdd (steps=2,rule=origin)"
    with pytest.raises(ValueError, match="there is no option size; known are: steps, rule"):
        load_peer(f"rival:{tmp_path}/gdd:size=2", CPU)
    with pytest.raises(FileNotFoundError, match="missing/model.safetensors"):
        load_peer("rival:missing", CPU)
