"""Paths mean the same everywhere, and a fault of a configuration is a message of one line."""

import pytest
from PIL import Image

import fedbayes
from fedbayes.config.compose import compose, resolved
from fedbayes.data.pixels import to_square
from fedbayes.errors import ConfigError, RunError
from fedbayes.report.cli import main
from fedbayes.text import closest


@pytest.mark.parametrize("word", ["data.root", "run_dir", "resume", "backbone.checkpoint"])
def test_a_path_begins_at_home_or_here_and_is_absolute(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "my home ü"))
    section, _, key = word.rpartition(".")

    def path(value):
        cfg = compose(["data=imagefolder", "data.root=.", "backbone=timm", f"{word}={value}"])
        return (cfg[section] if section else cfg)[key]

    assert path("~/photos") == path('"~/photos"') == str(tmp_path / "my home ü" / "photos")
    assert path("a/../photos") == str(tmp_path / "photos")
    assert path("/photos") == "/photos"


def test_other_paths_begin_at_home_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert compose(["data=hub", "data.name=~/set"]).data.name == str(tmp_path / "set")
    assert len(to_square("~/a.png", 8)) == 1
    (tmp_path / "sweep").mkdir()
    assert main(["~/sweep"]) == 2
    assert f"{tmp_path}/sweep holds no finished run" in capsys.readouterr().err
    with pytest.raises(RunError, match=f"{tmp_path}/sweep holds"):
        fedbayes.frame("~/sweep")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"defaults:\n  - fedvpt\n\toptim: {}\n", r"mine\.yaml.*line 3.*indent by spaces"),
        ("# ü".encode("latin-1"), "no UTF-8"),
        (b"\xef\xbb\xbf# @package _global_\ndefaults:\n  - fedvpt\n", r"mine\.yaml .*byte-order mark"),
    ],
)
def test_a_damaged_file_of_the_user_is_named(content, match, tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=match) as caught:
        resolved(compose([f"hydra.searchpath=[file://{tmp_path}]", "method=mine"]))
    assert "\n" not in str(caught.value)


def test_quotes_that_hydra_needs_are_shown():
    with pytest.raises(ConfigError) as caught:
        compose(["data=imagefolder", "data.root=/home/ü"])
    word = str(caught.value).partition("'")[2].partition("'")[0]
    assert compose(["data=imagefolder", word]).data.root == "/home/ü"


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("optim.lr_=1", "optim.lr."),
        ("optim.prompt_lr=1", "optim."),
        ("method=fedprx", "fedprox"),
        ("rouds=3", "rounds"),
    ],
)
def test_a_misspelt_word_suggests_the_nearest(word, meant):
    with pytest.raises(ConfigError, match=f"did you mean {meant}"):
        compose([word])


def test_what_begins_with_a_word_is_nearer_than_what_resembles_it():
    assert closest("deit3_small", ["rdnet_small", "deit3_small_patch16_224"])[0] == "deit3_small_patch16_224"
    assert closest("zzz", ["rounds"]) == []
