"""What the pages say is true: links lead somewhere, Python runs, and commands have the options they are shown with."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from PIL import Image

from gdd_diffusers.app.cli import app


ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*GUIDES, ROOT / "CHANGELOG.md", *sorted((ROOT / "examples").rglob("*.md")), *ROOT.glob("src/**/README.md")]


def name(path):
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{name(page)} links to {target}"
        assert not anchor or anchor in anchors(file), f"{name(page)} links to {target}"


@pytest.mark.parametrize("page", [page for page in GUIDES if blocks(page, "py")], ids=name)
def test_python_runs(page, tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    Image.effect_noise((64, 48), 30).convert("RGB").save(tmp_path / "noisy.jpg")
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in blocks(page, "py"):
        exec(block, namespace)


def commands(page: Path) -> list[list[str]]:
    """The words of every command in a page's blocks of shell, one list for each."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    lines = [part for line in text.splitlines() for part in line.split(" && ")]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_commands_have_their_options():
    gdd = typer.main.get_command(app).commands
    seen = set()
    for page in PAGES:
        for words in commands(page):
            options = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
            if words[0] == "gdd":
                command = gdd[words[1]]
                known = {option for parameter in command.params for option in parameter.opts}
                assert options <= known, f"{name(page)}: gdd {words[1]} has no {options - known}"
                seen.add(words[1])
            scripts = [word for word in words if word.startswith("examples/") and word.endswith(".py")]
            for script in scripts:
                source = (ROOT / script).read_text()
                options = {word for word in words[words.index(script) :] if re.match(r"--?[a-z]", word)}
                missing = {option for option in options if f'"{option}"' not in source}
                assert not missing, f"{name(page)}: {script} has no {missing}"
                seen.add(script)
    assert {"denoise", "examples/train.py", "examples/evaluate.py"} <= seen


def table_rows(text: str) -> dict[str, list[str]]:
    """The cells of the rows of tables, by their first one, without the number of images and bold type."""
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {re.sub(r", \d+ images$|, two CPU cores$", "", row[0]): row[1:] for row in rows}


def test_readme_and_results_have_the_same_figures():
    in_readme = table_rows((ROOT / "README.md").read_text().partition("## Results")[2].partition("\n## ")[0])
    in_results = table_rows((ROOT / "docs" / "results.md").read_text().partition("## Main comparison")[2])
    compared = set(in_readme) & set(in_results) - {"", "---"}
    assert len(compared) == len(set(in_readme) - {"", "---"}) >= 5
    for name in compared:
        _, noisy, small, _, fast, _, blind, best, *_ = in_results[name]
        assert [cell.replace("–", "") for cell in in_readme[name]] == [noisy, small, fast, blind, best], name


def test_promises_are_tested():
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs" / "promises.md").read_text(encoding="utf-8"))
    assert named and [name for name in named if f"def {name}(" not in tests] == []
