"""The pages of `docs/` do what they show: their files are written, their commands run, their links lead somewhere."""

import csv
import json
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
import unicodedata

import matplotlib.pyplot
import pytest
import yaml
from pages import PAGES, ROOT, SMALL, Shell, blocks, commands, files, words
from processes import COMPILED, QUIET

from fedbayes import load, simulate
from fedbayes.errors import RunError

EXTEND = ROOT / "docs" / "extend"


@pytest.fixture
def shell(monkeypatch, tmp_path):
    """A page's files written to an empty folder, and its commands run there; gives the folder."""
    opened = []

    def run(page):
        text = (EXTEND / page).read_text()
        for name, body in files(text).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(body)
        one = Shell(monkeypatch, tmp_path)
        opened.append((one, files(text)))
        for command in commands(text):
            one.run(command)
        return tmp_path

    yield run
    for one, written in opened:
        one.close(written)


def summary(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


def test_a_method_outside_of_the_repository(shell, capsys, monkeypatch):
    folder = shell("method_outside.md")
    assert summary(folder / "runs/gated")["method"] == "gated"
    jobs = sorted(
        path.name for path in (folder / "runs/compared").iterdir() if path.is_dir() and path.name[0].isdigit()
    )
    assert jobs == ["0-gated-s0", "1-gated-s1", "2-fedvpt-s0", "3-fedvpt-s1"]
    out = capsys.readouterr().out
    assert re.search(r"\['\d', '\d', '\d'\] \[0\.", out), "predict.py printed three labels"
    assert "has finished" in out, "resume could read the run"
    assert re.search(r"^  gated +Prompts that an image may turn down, averaged with the head\.", out, re.MULTILINE)
    monkeypatch.delenv("FEDBAYES_TRUST")
    with pytest.raises(RunError, match=r"gated\.GatedPrompts"):
        load(folder / "runs/gated")


def test_a_client_keeps_its_personal_parameters_when_it_is_resumed(shell, tmp_path):
    folder = shell("../client.md")
    whole = summary(folder / "runs/bias")
    (folder / "runs/bias/summary.json").unlink()
    (folder / "runs/bias/checkpoint/round-00002").rename(tmp_path / "gone")
    simulate(["resume=runs/bias"])
    assert summary(folder / "runs/bias")["final"] == whole["final"]
    jobs = [path.name for path in (folder / "runs/compared").iterdir() if (path / "summary.json").exists()]
    assert len(jobs) == 4


def test_the_tutorial_ends_with_a_figure(monkeypatch, tmp_path, capsys):
    text = (ROOT / "docs" / "tutorial.md").read_text()
    for name, body in files(text).items():
        (tmp_path / name).write_text(body)
    shell = Shell(monkeypatch, tmp_path)
    with matplotlib.rc_context():
        matplotlib.use("Agg")
        for command in commands(text):
            if words(command)[0] not in ("make", "source"):  # the set-up, which .ci/run does
                shell.run(command, SMALL)
        matplotlib.pyplot.close("all")
    assert (tmp_path / "figure.png").stat().st_size > 5_000
    assert summary(tmp_path / "runs/first")["clients"] == 10
    assert "fedavg_head" in capsys.readouterr().out


def test_a_data_set(shell):
    folder = shell("data_set.md")
    shapes = json.loads((folder / "runs/shapes/partition.json").read_text())
    assert (shapes["classes"], shapes["domains"]) == (["circle", "square"], ["day", "night"])
    assert sum(sum(client["labels"]) for client in shapes["clients"]) == 160
    assert json.loads((folder / "runs/negatives/partition.json").read_text())["domains"] == ["positive", "negative"]


def test_a_partition(shell, capsys):
    shell("partition.md")
    (shown,) = re.findall(r"(?:^client \d: .*\n)+", (EXTEND / "partition.md").read_text(), re.MULTILINE)
    assert shown in capsys.readouterr().out


def test_a_tracker(shell, capsys):
    folder = shell("tracker.md")
    out = capsys.readouterr().out
    with (folder / "runs/tracked/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    final = summary(folder / "runs/tracked")["final"]
    (last,) = (row for row in rows if (row["round"], row["phase"]) == ("2", "test"))
    assert float(last["accuracy"]) == final["accuracy"]["mean"]
    assert "table: " in out
    assert "scores.csv" in out
    assert "round,phase,accuracy,nll" in out


def test_a_method_in_the_repository(tmp_path):
    for name in ("fedbayes", "strategies", "clients", "conf", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    text = (EXTEND / "method.md").read_text()
    written = files(text)
    table, last = (ROOT / "docs" / "methods.md").read_text(), "| `centralised` |"
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "methods.md").write_text(table.replace(last, written.pop("docs/methods.md") + last, 1))
    for name, body in written.items():
        assert not (ROOT / name).exists(), f"{name} is there already; the page needs another example"
        (tmp_path / name).write_text(body)
    environment = {"PATH": QUIET["PATH"], "HOME": str(tmp_path), **QUIET, **COMPILED, "PYTHONPATH": str(tmp_path)}
    names = {"fedbayes": "fedbayes.run", "python": None}
    for command in commands(text):
        name, rest = command.split(" ", 1)
        line = f"{sys.executable} {f'-m {names[name]} ' if names[name] else ''}{rest}"
        done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [one for one in targets if ":" not in one and not (page.parent / one).exists()]
    assert missing == []


def anchors(page):
    """Those of a page's headings that GitHub and mkdocs make alike; they differ where letters are not ASCII."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = [re.sub(r"[`*]", "", one).strip().lower() for one in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    github = [re.sub(r"[^\w\- ]", "", one).replace(" ", "-") for one in headings]
    ascii_only = [unicodedata.normalize("NFKD", one).encode("ascii", "ignore").decode() for one in headings]
    mkdocs = [re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", one).strip()) for one in ascii_only]
    return {one for one, other in zip(github, mkdocs, strict=True) if one == other}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_into_pages_lead_to_a_heading_on_github_and_on_the_site(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#\s:]*)#([^)]*)\)", text)
    assert [f"{to}#{one}" for to, one in links if one not in anchors(page.parent / to if to else page)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_shown_files_are_sound(page):
    for block in blocks(page.read_text()):
        if block.language == "python":
            compile(block.body, str(page), "exec")
        elif block.language == "yaml":
            assert isinstance(yaml.safe_load(block.body), dict)


def test_every_page_is_in_the_navigation_and_names_modules_that_exist():
    site = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert f" {page.relative_to(ROOT / 'docs')}\n" in site
        for module in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE):
            assert pkgutil.resolve_name(module), module


def test_the_extra_for_the_site_names_what_it_is_built_with():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {re.match(r"[a-z-]+", one)[0] for one in extras["docs"]} == {"mkdocs-material", "mkdocstrings"}


def test_the_citation_is_of_this_software_and_the_paper_a_reference():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (cited["version"], cited["license"], cited["type"]) == (project["version"], project["license"], "software")
    (paper,) = cited["references"]
    assert paper["url"].endswith("/2508.19621")
    assert {one.get("family-names") for one in paper["authors"]}.isdisjoint(one["name"] for one in cited["authors"])


def test_the_model_card_is_of_the_shipped_file():
    card = (ROOT / "docs" / "model_card.md").read_text()
    (asset,) = (ROOT / "fedbayes" / "assets").glob("*.safetensors")
    assert asset.name in card
    assert f"{asset.stat().st_size / 1e6:.2f} MB" in card
