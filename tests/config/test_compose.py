"""Paths mean the same everywhere, and what is wrong with a configuration is said in one line."""

from pathlib import Path

import pytest

from fedbayes.config.compose import compose, resolved
from fedbayes.errors import ConfigError
from fedbayes.text import closest


@pytest.mark.parametrize("word", ["data.root", "run_dir", "resume", "backbone.checkpoint"])
def test_a_path_begins_at_home_or_here_and_is_absolute(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "my home ü"))
    section, _, key = word.rpartition(".")

    def path(value):
        cfg = compose(["data=imagefolder", "data.root=.", "backbone=timm", f"{word}={value}"])
        return (cfg[section] if section else cfg)[key]

    assert path("~/photos") == str(tmp_path / "my home ü" / "photos")
    assert path('"~/photos"') == str(tmp_path / "my home ü" / "photos")
    assert path("a/../photos") == str(tmp_path / "photos")
    assert path("/photos") == "/photos"


def test_a_default_folder_is_absolute_too(monkeypatch):
    monkeypatch.delenv("FEDBAYES_DATA", raising=False)
    assert compose(["data=mnist"]).data.root == str(Path.cwd() / "data")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"defaults:\n  - fedvpt\n\toptim: {}\n", r"own\.yaml.*line 3.*indent by spaces"),
        (b"\xef\xbb\xbf# @package _global_\ndefaults:\n  - fedvpt\n", r"own\.yaml begins with a byte-order mark"),
    ],
)
def test_a_damaged_file_of_ones_own_is_named(content, match, tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "own.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=match) as caught:
        resolved(compose([f"hydra.searchpath=[file://{tmp_path}]", "method=own"]))
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
