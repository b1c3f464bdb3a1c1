"""The real client of the Hub, in processes of its own, against a small Hub on this machine."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import make_pipeline
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel
from hub_server import TOKEN, Fault, Hub, Repo
from huggingface_hub import ModelCard
from numpy.testing import assert_allclose
from PIL import Image

from gdd_diffusers import InterpolationScheduler, RealDenoisePipeline
from gdd_diffusers.hub import Result, build_repo, check_repo, model_card, publish


pytestmark = pytest.mark.slow

MODULES = [
    "pipeline_real_denoise",
    "image_processor",
    "memory",
    "scheduling_interpolation",
    "tiling",
    "unet_local",
    "walks",
]
CODE = [f"{module}.py" for module in [*MODULES, "hub/loading"]]

# Every client begins with this: `run(pipe)` takes three steps on an image of several tiles.
CLIENT = """
import json, sys
from pathlib import Path
import numpy as np, torch
from diffusers import DiffusionPipeline
from typer.testing import CliRunner
picture = torch.from_numpy(np.random.default_rng(0).random((1, 3, 90, 101), np.float32))
def run(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(picture, num_inference_steps=3, output_type="np").images
"""

PUBLISH = """
import logging
from gdd_diffusers import RealDenoisePipeline
from gdd_diffusers.app import cli
from gdd_diffusers.hub import publishing as hub

warned = []
logging.getLogger("gdd_diffusers.hub.publishing").addFilter(lambda record: warned.append(record.getMessage()))

# A folder by the command
folder, files = sys.argv[1:]
for arguments in (["org/dry", "--dry-run"], ["org/gdd"]):
    result = CliRunner().invoke(cli.app, ["publish", folder, *arguments])
    print(json.dumps({"command": result.output, "code": result.exit_code}))

# A pipeline
pipe = RealDenoisePipeline.from_pretrained(folder)
pipe.save_pretrained(Path(folder), push_to_hub=True, private=True)  # under the folder's name, in one's own namespace
try:
    pipe.save_pretrained(files, push_to_hub=True, repo_id="gdd", token="hf_wrong")
except OSError as error:
    print(json.dumps({"pushed": str(error)}))

# Again and again: the parts that have been checked above, without the check
def upload(card, **kwargs):
    Path(folder, "README.md").write_text(card) if card else Path(folder, "README.md").unlink()
    hub.build_repo(folder, files, "org/again")
    return hub.upload_repo(files, "org/again", **kwargs).oid

print(json.dumps([upload("# First"), upload("# Second"), upload(None)]))
input()  # somebody edits the card there
print(json.dumps([upload("# Third")]))
print(json.dumps([upload("# Fourth", overwrite_card=True)]))
for kwargs in ({"private": True}, {"token": "hf_wrong"}):
    try:
        upload("# Fifth", **kwargs)
    except (OSError, ValueError) as error:
        print(json.dumps([str(error)]))
print(json.dumps({"warnings": warned}))
"""

COMMAND = """
from gdd_diffusers.app import cli
def denoise(model, output):
    arguments = ["denoise", noisy, "-o", output, "--model", model, "--dtype", "float32", "--steps", "3"]
    return CliRunner().invoke(cli.app, arguments).exit_code
"""

WITH_PACKAGE = (
    COMMAND
    + """
import time
from concurrent.futures import ThreadPoolExecutor
from gdd_diffusers import InterpolationScheduler, RealDenoisePipeline
sleep = time.sleep
time.sleep = lambda seconds: sleep(seconds / 100)  # the client waits 23 s in all for a Hub that is down
load, (sha, output, noisy, *cases) = RealDenoisePipeline.from_pretrained, sys.argv[1:]

def attempt(name):
    repo, _, revision = name.partition("@")
    try:
        load(repo, revision=revision or None, token="hf_wrong" if repo == "org/refused" else None)
    except (OSError, ValueError) as error:
        return str(error)

with ThreadPoolExecutor(len(cases)) as pool:
    said = dict(zip(cases, pool.map(attempt, cases)))
for name in ("org/cut", "org/corrupt"):  # the second time it goes well
    said[name + " again"] = attempt(name)
scheduler = InterpolationScheduler.from_pretrained("org/gdd", subfolder="scheduler")
origin = InterpolationScheduler.from_config(scheduler.config, step_rule="origin")
np.savez(
    output,
    main=run(load("org/gdd")),
    pinned=run(load("org/gdd", revision=sha)),
    cpu=run(load("org/gdd", device_map="cpu")),
    private=run(load("org/private", token="hf_" + "t" * 34)),
    fp16=run(load("org/gdd", variant="fp16", dtype=torch.float16)),
    plain=run(load("org/plain")),
    string=run(load("org/string", cache_dir=output + ".cache")),
    trusted=run(load("org/evil", trust_remote_code=True)),
    scheduler=run(load("org/gdd", scheduler=scheduler)),
    origin=run(load("org/gdd", scheduler=origin)),
    dropped=run(load("org/dropped")),
    evil=run(load("org/evil")),
)
said["denoise"] = denoise(f"org/gdd@{sha}", output + ".png")
said["cache"] = sorted(path.name for path in Path(output + ".cache").glob("models--*"))
try:
    DiffusionPipeline.from_pretrained("org/evil")
except ValueError as error:
    said["org/evil without trust"] = str(error)
print(json.dumps(said, default=bool))
"""
)

WITHOUT_PACKAGE = """
sys.modules["gdd_diffusers"] = None
from diffusers import DDPMScheduler
def load(**kwargs):
    return DiffusionPipeline.from_pretrained("org/gdd", trust_remote_code=True, **kwargs)
sha, output = sys.argv[1:]
pipe = load()
np.savez(
    output, main=run(pipe), pinned=run(load(revision=sha)), fp16=run(load(variant="fp16", dtype=torch.float16))
)
shared = type(pipe).from_pipe(pipe).unet is pipe.unet
try:
    type(pipe)(pipe.unet, DDPMScheduler())
except ValueError as error:
    print(json.dumps([type(pipe).__module__, pipe.receptive_field, shared, str(error)]))
try:
    pipe.push_to_hub("org/copy")
except ImportError as error:
    print(json.dumps(str(error)))
"""

OFFLINE = (
    COMMAND
    + """
from gdd_diffusers import RealDenoisePipeline
load, (sha, output, noisy) = RealDenoisePipeline.from_pretrained, sys.argv[1:]
np.savez(
    output,
    main=run(load("org/gdd")),
    pinned=run(load("org/gdd", revision=sha)),
    local=run(load("org/gdd", local_files_only=True)),
    fp16=run(load("org/gdd", variant="fp16", dtype=torch.float16)),
)
try:
    load("me/my-gdd")
except OSError as error:
    print(json.dumps([str(error), denoise(f"org/gdd@{sha}", output + ".png")]))
"""
)

EVIL = 'from pathlib import Path\n\nPath("{marker}").touch()\n\n\nclass {name}:\n    pass\n'


class World:
    """The Hub, what was published to it, and clients."""

    def __init__(self, hub: Hub, folder: Path):
        self.hub, self.folder = hub, folder
        self.model = folder / "my-gdd"
        torch.manual_seed(0)
        self.pipe = make_pipeline(tile_size=64, tile_overlap=32)
        self.noisy = folder / "noisy.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(self.noisy)
        self.pipe.save_pretrained(self.model)
        model_card("my-gdd", license="apache-2.0", picture="before_after.png").save(self.model / "README.md")
        for name in ("before_after.png", "private.png", "unet/optimizer.bin", "checkpoint-1/optimizer.bin"):
            (self.model / name).parent.mkdir(exist_ok=True)
            (self.model / name).write_bytes(b"bytes")

    def client(self, script: str, *arguments, home="home", **environment) -> subprocess.Popen:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        # without xet, which is another server; OMP_NUM_THREADS: results to the bit whatever runs beside
        settings = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
        settings |= {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.folder / home), "NO_PROXY": "127.0.0.1"}
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT + script, *map(str, arguments)],
            env=kept | settings | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, client: subprocess.Popen) -> list:
        output, errors = client.communicate()
        assert client.returncode == 0, errors
        self.errors = errors
        return [json.loads(line) for line in output.splitlines()]

    def files(self, name: str) -> dict[str, bytes]:
        return self.hub.repos[name].commits[self.hub.repos[name].sha]

    def expected(self, step_rule="improved") -> np.ndarray:
        pipe = RealDenoisePipeline.from_pretrained(self.model, scheduler=InterpolationScheduler(step_rule=step_rule))
        picture = torch.from_numpy(np.random.default_rng(0).random((1, 3, 90, 101), np.float32))
        return pipe(picture, num_inference_steps=3, output_type="np").images


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with Hub() as hub:
        yield World(hub, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def author(world):
    """The output of the client that publishes; `world.hub` then holds org/gdd, me/my-gdd and org/again."""
    client = world.client(PUBLISH, world.model, world.folder / "files", home="author", HF_TOKEN=TOKEN)
    said = [json.loads(client.stdout.readline()) for _ in range(4)]
    repo = world.hub.repos["org/again"]
    edited = dict(world.files("org/again"))
    edited["README.md"] = edited["README.md"].replace(b"# Second", b"# Second, by hand")
    edited["unet/diffusion_pytorch_model.bin"] = b"an old pickle"
    edited["handler.py"] = b"pass"
    repo.commit(edited)
    client.stdin.write("\n")
    return said + world.finish(client)


@pytest.fixture(scope="module")
def stranger(world, author):
    """A client without the package, which runs at the same time as `reader`."""
    sha, output = world.hub.repos["org/gdd"].sha, world.folder / "stranger.npz"
    return world.client(WITHOUT_PACKAGE, sha, output, home="stranger")


@pytest.fixture(scope="module")
def reader(world, author, stranger):
    """What a client with the package got from good and bad repos, and the errors."""
    hub, good = world.hub, world.files("org/gdd")
    marker = world.folder / "evil-was-here"

    def put(name, changes=None, without=(), private=False):
        hub.repos[name] = Repo(private)
        hub.repos[name].commit({k: v for k, v in (good | (changes or {})).items() if k not in without})

    def evil_index(**changes):
        index = json.loads(good["model_index.json"]) | {"_class_name": ["evil", "RealDenoisePipeline"]} | changes
        index |= {"extra": ["evil", "Evil"]}
        code = {name: "RealDenoisePipeline" for name in ("evil.py", "pipeline_real_denoise.py")}
        code |= {
            "unet/evil.py": "LocalUNet2DModel",
            "scheduler/evil.py": index["scheduler"][1],
            "extra/evil.py": "Evil",
        }
        files = {path: EVIL.format(marker=marker, name=name).encode() for path, name in code.items()}
        return files | {"model_index.json": json.dumps(index).encode()}

    put("org/private", private=True)
    for name in ("cut", "corrupt", "down", "broken", "refused", "gated"):
        put(f"org/{name}")
    index = json.loads(good["model_index.json"])
    put("org/string", {"model_index.json": json.dumps(index | {"_class_name": "RealDenoisePipeline"}).encode()})
    index = (world.model / "model_index.json").read_bytes()
    put("org/plain", {"model_index.json": index}, without=[path for path in good if path.endswith(".py")])
    weights = [f"unet/diffusion_pytorch_model{variant}.safetensors" for variant in ("", ".fp16")]
    # the client writes, and so can resume after, pieces of 10 MiB; a header can be as long as one wants
    long = safetensors.torch.load(good[weights[0]])
    long = safetensors.torch.save(long, {"format": "pt", "padding": " " * 11_000_000})
    put("org/dropped", {weights[0]: long})
    put("org/pickle", {"unet/diffusion_pytorch_model.bin": b"a pickle"}, without=weights)
    classes = {"unet": ["evil", "LocalUNet2DModel"]}
    put("org/evil", evil_index(scheduler=["evil", "InterpolationScheduler"], **classes))
    put("org/other", evil_index(scheduler=["evil", "EvilScheduler"], **classes))

    def weights_of(name):
        return f"{name}/resolve/{hub.repos[name].sha}/{weights[0]}"

    hub.faults = [
        Fault(weights_of("org/dropped"), drop_after=10_700_000, times=1),
        Fault(weights_of("org/cut"), drop_after=0, times=6),  # and all retries
        Fault(weights_of("org/corrupt"), corrupt=True, times=1),
        Fault("org/down", status=503),
        Fault("org/broken", status=500),
        Fault("org/gated/resolve", status=403, code="GatedRepo"),
    ]
    output = world.folder / "reader.npz"
    cases = ["me/my-gdd", "org/missing", "org/gdd@nope", "org/cut", "org/corrupt", "org/down", "org/broken"]
    cases += ["org/refused", "org/gated", "org/pickle", "org/other", "not-a-folder/of/mine"]
    (said,) = world.finish(world.client(WITH_PACKAGE, hub.repos["org/gdd"].sha, output, world.noisy, *cases))
    assert not marker.exists()
    return dict(np.load(output)), said


def test_dry_run_lists_the_files_without_a_request(world, author):
    assert author[0]["code"] == 0 and "pipeline_real_denoise.py" in author[0]["command"]
    assert not any("org/dry" in path for _, path, _ in world.hub.requests) and "org/dry" not in world.hub.repos


def test_published_by_the_command(world, author):
    assert author[1] == {"command": f"{world.hub.url}/org/gdd/commit/{world.hub.repos['org/gdd'].sha}\n", "code": 0}
    assert len(world.hub.repos["org/gdd"].commits) == 2  # that of the new repo, and one
    assert sorted(world.files("org/gdd")) == sorted(
        [".gitattributes", "README.md", "before_after.png", "model_index.json", "unet/config.json", *CODE]
        + ["scheduler/scheduler_config.json", "scheduler/scheduling_interpolation.py", "unet/unet_local.py"]
        + ["unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"]
    )
    card = world.files("org/gdd")["README.md"].decode()
    assert all(
        f"{code}org/gdd" in card for code in ('from_pretrained("', "gdd denoise noisy.jpg --model ", "hf download ")
    )
    assert "my-gdd" not in card.partition("\n# my-gdd\n")[2]


def test_published_pipeline_is_the_same_repo_and_private_with_the_name_of_the_folder(world, author):
    assert author[2] == {
        "pushed": "Could not publish gdd: your token does not allow it, or there is none; log in with `hf auth login` "
        "or pass another `token`."
    }
    assert world.hub.repos["me/my-gdd"].private and not world.hub.repos["org/gdd"].private
    pushed, published = world.files("me/my-gdd"), world.files("org/gdd")
    assert all(pushed[path] == published[path] for path in pushed if path != "README.md")


def test_nothing_of_the_author_is_published(world, author):
    for name in ("org/gdd", "org/again", "me/my-gdd"):
        for path, content in world.files(name).items():
            for secret in (TOKEN, str(world.folder), str(Path.home()), str(Path.cwd()), "/tmp/"):
                assert secret.encode() not in content
            assert "_name_or_path" not in (json.loads(content) if path.endswith(".json") else {})


def test_card_is_replaced_unless_somebody_edited_it(world, author):
    again = world.hub.repos["org/again"].commits
    first, second, without, third, fourth = (again[sha]["README.md"] for line in author[3:6] for sha in line)
    assert first.startswith(b"# First") and second.startswith(b"# Second\n") and fourth.startswith(b"# Fourth")
    assert without == second  # a model without a card has nothing better to say
    assert third.startswith(b"# Second, by hand")
    assert author[-1] == {
        "warnings": [
            "The card of org/again has no replacement, so it stays as it is there.",
            "The card of org/again was written or changed on the Hub, so it stays as it is there.",
        ]
    }


def test_old_weights_go_and_other_files_stay(world, author):
    files = world.hub.repos["org/again"].commits[author[4][0]]
    assert "unet/diffusion_pytorch_model.bin" not in files and "handler.py" in files


def test_errors_of_the_hub_are_one_sentence(author):
    assert author[6] == ["org/again exists and is public; make it private on its page first."]
    assert author[7] == [
        "Could not publish org/again: your token does not allow it, or there is none; log in with `hf auth login` or "
        "pass another `token`."
    ]


@pytest.mark.parametrize("case", "main pinned cpu private plain string trusted scheduler dropped evil".split())
def test_loaded_with_the_package(world, reader, case):
    # the weights of "dropped" lie elsewhere in memory, behind a longer header, where the products of matrices and
    # vectors that embed the timestep may be rounded otherwise
    assert_allclose(reader[0][case], world.expected(), atol=1e-6 if case == "dropped" else 0, rtol=0)


def test_half_precision_differs_by_its_rounding(world, reader):
    difference = np.abs(reader[0]["fp16"] - world.expected()).max()
    assert 0 < difference < 0.01


def test_another_rule_from_the_config_of_the_scheduler_alone(world, reader):
    assert np.array_equal(reader[0]["origin"], world.expected("origin"))
    assert not np.array_equal(reader[0]["origin"], reader[0]["main"])


def test_cache_is_where_it_should_be(reader):
    assert reader[1]["cache"] == ["models--org--string"]


def test_command_denoises_with_a_repo(world, reader):
    assert reader[1]["denoise"] == 0
    image = Image.open(world.noisy)
    expected = np.asarray(world.pipe(image, num_inference_steps=3).images[0])
    assert np.array_equal(np.asarray(Image.open(world.folder / "reader.npz.png")), expected)


def test_dropped_connection_is_resumed(world, reader):
    ranges = [r for _, path, r in world.hub.requests if path.startswith("/org/dropped/resolve") and r]
    assert ranges == [f"bytes={10 * 2**20}-"]


@pytest.mark.parametrize(
    "case, message",
    {
        "me/my-gdd": "there is no such repo, or it is private; log in with `hf auth login` or pass a `token`",
        "org/missing": "there is no such repo, or it is private",
        "org/gdd@nope": "it has no such revision",
        "org/cut": "peer closed connection",
        "org/cut again": None,
        "org/corrupt": "arrived damaged: the sha256 of diffusion_pytorch_model.safetensors is",
        "org/corrupt again": None,
        "org/down": "the Hub answered with HTTP status 503; try again later",
        "org/broken": "the Hub answered with HTTP status 500; try again later",
        "org/refused": "your token does not allow it, or there is none; log in with `hf auth login` or pass another",
        "org/gated": "its owners have to let you in; ask for access on its page and log in",
        "org/pickle": "has no weights diffusion_pytorch_model.safetensors in its folder `unet`; pickled ones are",
        "org/other": "its `scheduler` is EvilScheduler, not InterpolationScheduler",
        "not-a-folder/of/mine": "neither a valid local path nor a valid repo id",
        "org/evil without trust": "trust_remote_code=True",
    }.items(),
)
def test_errors_of_loading_are_one_sentence(reader, case, message):
    said = reader[1][case]
    assert said is None if message is None else message in said
    assert message is None or case == "org/evil without trust" or "\n" not in said


def test_no_half_file_is_kept(world, reader):
    blobs = [path for path in (world.folder / "home").rglob("*") if path.is_file() and path.parent.name == "blobs"]
    assert blobs and not [path for path in blobs if path.suffix == ".incomplete"]
    assert not [path for path in (world.folder / "home").rglob("*.py") if "snapshots" in path.parts]


def test_offline_from_the_cache(world, reader):
    before = len(world.hub.requests)
    output = world.folder / "offline.npz"
    client = world.client(OFFLINE, world.hub.repos["org/gdd"].sha, output, world.noisy, HF_HUB_OFFLINE="1")
    ((said, code),) = world.finish(client)
    assert said == "Could not get me/my-gdd from the Hub: it is not all in the cache, and the Hub cannot be reached."
    assert code == 0
    assert (world.folder / "offline.npz.png").read_bytes() == (world.folder / "reader.npz.png").read_bytes()
    assert len(world.hub.requests) == before
    loaded = np.load(output)
    assert all(np.array_equal(loaded[name], world.expected()) for name in ("main", "pinned", "local"))
    assert np.array_equal(loaded["fp16"], reader[0]["fp16"])


def test_loaded_without_the_package(world, reader, stranger):
    (module, receptive_field, shared, wrong_scheduler), refusal = world.finish(stranger)
    assert module.startswith("diffusers_modules.") and "gdd-diffusers" in refusal
    assert receptive_field == world.pipe.receptive_field  # so tiles are cut and joined in the same way
    assert shared and "needs an InterpolationScheduler" in wrong_scheduler
    loaded = np.load(world.folder / "stranger.npz")
    assert all(np.array_equal(loaded[name], world.expected()) for name in ("main", "pinned"))
    assert np.array_equal(loaded["fp16"], reader[0]["fp16"])


def test_a_repo_that_does_not_load_is_refused(pipe, tmp_path):
    build_repo(pipe, tmp_path, "org/gdd")
    (tmp_path / "tiling.py").unlink()
    with pytest.raises(RuntimeError, match="does not load without this package.*tiling"):
        check_repo(tmp_path)


def test_names_are_checked_first(pipe, tmp_path):
    with pytest.raises(ValueError, match="A repo is named ORG/NAME"):
        publish(pipe, "gdd")
    with pytest.raises(ValueError, match="Repo id must use"):
        publish(pipe, "org/what is this")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        publish(tmp_path / "nothing", "org/gdd")


@pytest.mark.parametrize("cls", [UNet2DModel, None])
def test_repo_loads_from_its_folder_with_the_same_bits(pipe, plain_pipe, cls, tmp_path):
    source = plain_pipe if cls else pipe
    build_repo(source, tmp_path, "org/gdd")
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == (["diffusers", "UNet2DModel"] if cls else ["unet_local", "LocalUNet2DModel"])
    loaded = RealDenoisePipeline.from_pretrained(tmp_path)
    assert type(loaded.unet) is type(source.unet)
    again = loaded.unet.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in source.unet.state_dict().items())
    assert source.unet.dtype == torch.float32  # not halved for the variant
    half = RealDenoisePipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    assert half.unet.dtype == torch.float16


def test_a_pipeline_that_could_not_be_loaded_is_refused(tmp_path):
    pipe = make_pipeline()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="`scheduler` is FlowMatchEulerDiscreteScheduler"):
        build_repo(pipe, tmp_path, "org/gdd")


def test_card_has_its_sections_and_results(tmp_path):
    card = model_card(
        "org/gdd",
        license="apache-2.0",
        recipe="Ten minutes.",
        training_data="Sixty pictures.\n\n- one by A, CC0",
        datasets=["org/pictures"],
        results=[
            Result("Kodak, sigma 25", "PSNR (dB)", 20.456, 30.123),
            Result("Kodak, sigma 25", "SSIM", 0.5, 0.91234),
            Result("Kodak, sigma 25", "PSNR (dB)", 20.456, 29.0, "origin, 10 steps"),
            Result("Kodak, clean", "PSNR (dB)", None, 40.0),
        ],
        commands=["python examples/evaluate.py"],
        limits="Text blurs.",
        picture="before_after.png",
    )
    card.save(tmp_path / "README.md")
    card = ModelCard.load(tmp_path / "README.md")
    headings = ["Usage", "Recipe", "Training data", "Results", "Limits", "Citation"]
    assert re.findall(r"^## (.+)$", card.text, re.MULTILINE) == headings
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "diffusers", "image-to-image")
    assert data.datasets == ["org/pictures"]
    assert [(r.dataset_name, r.dataset_type) for r in data.eval_results[-2:]] == [
        ("Kodak, sigma 25", "kodak-sigma-25"),
        ("Kodak, clean", "kodak-clean"),
    ]
    assert [(r.metric_type, r.metric_name, r.metric_value) for r in data.eval_results[:3]] == [
        ("psnr", "PSNR (dB), denoised", 30.12),
        ("ssim", "SSIM, denoised", 0.9123),
        ("psnr", "PSNR (dB), origin, 10 steps", 29.0),
    ]
    assert [line for line in card.text.splitlines() if line.startswith("| ")][2:] == [
        "| Kodak, sigma 25 | noisy | 20.46 | 0.5000 |",
        "|  | denoised | 30.12 | 0.9123 |",
        "|  | origin, 10 steps | 29.00 |  |",
        "| Kodak, clean | denoised | 40.00 |  |",
    ]
    for words in ("Ten minutes.", "one by A, CC0", "Text blurs."):
        assert words in card.text
    assert "![Noisy and denoised](before_after.png)" in card.text and "python examples/evaluate.py" in card.text


@pytest.fixture
def example(pipe, tmp_path, monkeypatch):
    """Launches examples/publish.py on a model of its own with these options."""
    pipe.save_pretrained(tmp_path / "model")
    clean = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(clean).save(tmp_path / "clean.png")

    def launch(*options):
        arguments = ["publish.py", "model", "org/gdd", *options]
        monkeypatch.setattr(sys, "argv", arguments)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
        runpy.run_path(str(Path(__file__).parents[1] / "examples" / "publish.py"), run_name="__main__")

    return launch


def write_results(file, *models):
    methods = [{"name": "noisy input", "model": None, "variant": None, "figures": {"psnr": 20.0, "ssim": 0.5}}]
    methods += [
        {"name": "gdd", "model": model, "variant": "origin, 3 steps", "figures": {"psnr": 30.0, "ssim": 0.9}}
        for model in models
    ]
    file.write_text(json.dumps([{"name": file.stem, "pictures": ["a", "b"], "methods": methods}]))


def test_example_writes_the_card_of_a_trained_model(example, tmp_path):
    write_results(tmp_path / "kitchen.json", str(tmp_path / "model"), "elsewhere")
    write_results(tmp_path / "garden.json", "./model")
    (tmp_path / "card.toml").write_text('license = "cc0-1.0"\nlimits = """\nText blurs.\n"""')
    results = ["--results", "kitchen.json", "garden.json"]
    pictures = ["--picture", "clean.png", "clean.png@phone:800"]
    example("--card", "card.toml", *results, *pictures, "--card_only")
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.license == "cc0-1.0" and "Text blurs." in card.text
    assert "| kitchen, 2 images | noisy | 20.00 | 0.5000 |\n|  | origin, 3 steps | 30.00 | 0.9000 |" in card.text
    assert [r.dataset_name for r in card.data.eval_results] == ["kitchen, 2 images"] * 2 + ["garden, 2 images"] * 2
    assert "![Noisy and denoised](before_after.jpg)" in card.text
    # one below the other: noisy and denoised, which with simulated noise are followed by the truth
    assert Image.open(tmp_path / "model" / "before_after.jpg").width == 3 * 64 + 2 * 8


def test_card_of_a_grey_photograph_shows_grey_noise(example, tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (48, 64), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    (tmp_path / "card.toml").write_text('license = "cc0-1.0"')
    example("--card", "card.toml", "--picture", "grey.png@phone:800", "--card_only")
    pixels = np.asarray(Image.open(tmp_path / "model" / "before_after.jpg")).astype(int)
    assert np.ptp(pixels, axis=-1).max() <= 2  # as much as JPEG's rounding


@pytest.mark.parametrize(
    "toml, options, message",
    [
        ('licence = "cc0-1.0"', [], "card.toml may hold .*, not licence"),
        ("license = cc0", [], "card.toml: "),
        ("", ["--results", "other.json"], "other.json has no figures of the model model"),
        ("", ["--picture", "nothing.png"], "nothing.png"),
        ("", ["--picture", "clean.png@phone:0"], "iso"),
    ],
)
def test_errors_in_a_card_are_one_sentence(example, tmp_path, toml, options, message):
    write_results(tmp_path / "other.json", "elsewhere")
    (tmp_path / "card.toml").write_text(toml)
    with pytest.raises(SystemExit, match=f"^publish.py: .*{message}"):
        example("--card", "card.toml", "--card_only", *options)
    assert not (tmp_path / "model" / "README.md").exists()
