"""`fedbayes-info` says what there is in one sentence each, and shows the files behind it."""

import re
import sys

import pytest

from fedbayes.commands.info import GROUPS, choices, main, said
from fedbayes.config.compose import CONF


@pytest.fixture
def info(monkeypatch, capsys):
    def run(*asked):
        monkeypatch.setattr(sys, "argv", ["fedbayes-info", *asked])
        main()
        return capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("# @package _global_\n# One\n# two. Three.\nkey: 1\n# later", "One two."),
        ("# After Ye et al. (2025).\nkey: 1", "After Ye et al. (2025)."),
        ("key: 1", ""),
    ],
)
def test_the_first_sentence_even_over_two_lines(text, sentence):
    assert said(text) == sentence


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_says_what_it_is_in_a_whole_sentence(group):
    for name, text in choices(group).items():
        assert text.endswith("."), f"{group}={name}: {text}"


def test_a_choice_shows_its_file_and_values_show_the_comments(info):
    assert (CONF / "method" / "fedvpt.yaml").read_text().strip() in info("method=fedvpt").out
    assert "# K, fresh mixing draws" in info("values").out
    both = info("data", "attack").out
    assert "  sign_flip " in both
    assert "  mnist " in both
    assert "method=" not in both


def test_without_words_there_are_versions_and_all_groups(info):
    out = info().out
    assert out.startswith("versions")
    for group in GROUPS:
        assert f"\n{group}=\n" in out


@pytest.mark.parametrize(("asked", "remedy"), [("methd", "is no group; give method"), ("data=mnst", "choose one of")])
def test_what_does_not_exist_is_said_with_what_does(info, capsys, asked, remedy):
    with pytest.raises(SystemExit) as end:
        info(asked)
    assert end.value.code == 2
    assert remedy in capsys.readouterr().err


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of configurations with a method of its own and one that fedbayes has, too; the working directory."""
    folder = tmp_path / "my_conf" / "method"
    folder.mkdir(parents=True)
    (folder / "gated.yaml").write_text("# @package _global_\n# Prompts behind a gate. More.\nmethod: {}\n")
    (folder / "fedvpt.yaml").write_text("# Never taken.\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("place", ["file://my_conf", "my_conf", "pkg://my_conf"])
def test_methods_of_ones_own_are_listed_with_their_files(info, place):
    out = info(f"hydra.searchpath=[{place}]", "method").out
    (line,) = (line for line in out.splitlines() if line.startswith("  gated "))
    assert re.search(r"Prompts behind a gate\. \[\S*my_conf/method/gated\.yaml\]$", line)
    assert "Never taken" not in out
    assert "  pfedbayespt " in out
    assert "# Prompts behind a gate. More." in info("method=gated", f"hydra.searchpath=[{place}]").out


@pytest.mark.usefixtures("own")
def test_a_search_path_alone_shows_everything(info):
    out = info("hydra.searchpath=[file://my_conf]").out
    assert out.startswith("versions")
    assert "\n  gated " in out
    assert "\nexperiment=\n" in out


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("value", ["my_conf", "[", "[file://nowhere]", "[pkg://no_such.conf]", "[s3://bucket]"])
def test_a_search_path_that_is_none_is_refused(info, capsys, value):
    with pytest.raises(SystemExit) as end:
        info(f"hydra.searchpath={value}", "method")
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fedbayes-info: hydra.searchpath={value} ")
    assert "as in 'hydra.searchpath=[file://DIR]'" in said


def test_the_help_of_the_command_lists_every_group_and_says_where_to_read_on(monkeypatch, capsys):
    from fedbayes.run import main as fedbayes

    monkeypatch.setattr(sys, "argv", ["fedbayes", "--help"])
    with pytest.raises(SystemExit) as end:
        fedbayes()
    assert not end.value.code
    out = capsys.readouterr().out
    for group in GROUPS:
        assert f"\n{group}: {', '.join(choices(group))}\n" in out
    for remedy in ("fedbayes-info values", "hydra.searchpath", "resume=", "Exit status"):
        assert remedy in out
