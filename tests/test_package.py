"""The wheel and the source distribution, built, and the wheel's `gdd` command in an environment of its own."""

import email
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

import gdd_diffusers


pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "gdd_diffusers"
REPOSITORY = "org/gdd-diffusers"


def run(*command, cwd, **variables) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    result = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the wheel and the source distribution that it is built from."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    run(*command, cwd=folder, GITHUB_REPOSITORY=REPOSITORY)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The scripts of an environment with the wheel, which takes its dependencies from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(packages, "dependencies.pth").write_text("\n".join(paths))
    return python.parent


def test_version():
    assert gdd_diffusers.__version__ == version("gdd-diffusers")


def test_wheel_has_every_file_of_the_package(wheel):
    files = {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    files = {file for file in files if "__pycache__" not in file}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == files
    assert "gdd_diffusers/py.typed" in packed


def test_source_distribution_can_be_tested(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("src", "tests", "examples", "docs"):
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.*") if path.is_file()}
        assert {file for file in files if "__pycache__" not in file} <= names
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "hatch_build.py"} <= names


def test_readme_on_pypi_links_to_the_tag_that_it_was_built_from(wheel):
    with zipfile.ZipFile(wheel) as archive:
        file = next(name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = email.message_from_bytes(archive.read(file))
    targets = re.findall(r"\]\(([^)]+)\)", metadata.get_payload())
    assert targets and all(target.startswith(("https://", "#")) for target in targets)
    tag = f"v{metadata['Version']}"
    assert any(target.startswith(f"https://raw.githubusercontent.com/{REPOSITORY}/{tag}/") for target in targets)
    assert f"Source, https://github.com/{REPOSITORY}" in metadata.get_all("Project-URL")


def test_command_works_outside_the_repository(installed, tmp_path):
    where = run(installed / "python", "-c", "import gdd_diffusers; print(gdd_diffusers.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    gdd = installed / "gdd"
    assert run(gdd, "--version", cwd=tmp_path).split()[1] == gdd_diffusers.__version__
    noisy, clean = (ROOT / "examples" / "assets" / f"coffee_{name}.png" for name in ("noisy", "clean"))
    run(gdd, "denoise", noisy, "-o", "denoised.png", cwd=tmp_path)
    noisy, clean, denoised = (np.asarray(Image.open(path), int) for path in (noisy, clean, tmp_path / "denoised.png"))
    assert np.square(denoised - clean).mean() < np.square(noisy - clean).mean() / 6


def test_page_works_outside_the_repository(installed, tmp_path):
    pytest.importorskip("gradio")
    command = [str(installed / "gdd"), "demo", "--no-browser"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 300
        while not (url := re.search(r"http://[\w.:]+", (tmp_path / "log").read_text())):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        with urlopen(url[0]) as answer:
            assert b"gradio" in answer.read()
    finally:
        process.terminate()
    assert process.wait(300) == 0
