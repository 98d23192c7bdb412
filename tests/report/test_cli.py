import io
import json
import os

import pytest
from rich.console import Console

from fedbayes.report.cli import main
from fedbayes.report.comparison import compare, find_runs
from fedbayes.report.results import final_table
from fedbayes.report.run_page import write_html
from fedbayes.report.spread import size
from fedbayes.storage.run_dir import write_json

SUMMARY = {
    "method": "pfedbayespt",
    "data": "styled_digits",
    "partition": "domain_mixture",
    "backbone": "vit",
    "seed": 0,
    "rounds": 15,
    "clients": 10,
    "final": {
        "round": 15,
        "accuracy": {"mean": 0.8125, "weighted": 0.82, "std": 0.0511, "worst_decile": 0.7},
        "nll": 0.61,
        "ece": 0.09,
        "brier": 0.3,
        "prompt_uncertainty": None,
        "reliability": {"confidence": [None, 0.5], "accuracy": [None, 0.6], "count": [0, 4]},
    },
    "best": {"round": 12, "accuracy": {"mean": 0.9}, "nll": 0.5, "ece": 0.08},
    "per_client": [{"partition": 0, "images": 4, "accuracy": 0.75, "nll": 0.6}],
    "per_domain": {"plain": {"images": 4, "accuracy": 0.75, "nll": 0.6}},
    "bytes": {"up": 12_345_678, "down": 900},
    "seconds": {"total": 61.2, "train": 44.0},
    "images_per_second": 1520.3,
    "peak_memory_mb": 812.0,
}


def shown(renderable, **options):
    console = Console(file=io.StringIO(), width=80, **options)
    console.print(renderable)
    return console.file.getvalue()


def add_run(folder, accuracy=0.8, config=None, **changes):
    folder.mkdir(parents=True)
    final = {**SUMMARY["final"], "accuracy": {**SUMMARY["final"]["accuracy"], "mean": accuracy}}
    write_json(folder / "summary.json", {**SUMMARY, "final": final, **changes})
    if config is not None:
        write_json(folder / "config.yaml", config)  # JSON is YAML
    return folder


def rows_of(comparison):
    return tuple(tuple(cell.text for cell in row) for row in comparison.table.cells())


def best_of(comparison):
    return [cell.text for row in comparison.table.cells() for cell in row if cell.is_best]


def test_the_final_table_shows_values_with_units():
    text = shown(final_table(SUMMARY))
    for part in ("0.812 ± 0.051", "0.700", "0.610", "NLL, pooled (nats)", "best by validation: 12", "0.900", "plain"):
        assert part in text
    for part in ("12.3 MB up, 900 B down", "1:01", "1,520 images/s", "812 MB"):
        assert part in text
    assert "prompt uncertainty" not in text  # null in both columns
    assert "\x1b" not in text


def test_the_final_table_takes_an_empty_summary_and_strange_names():
    assert "run" in shown(final_table({}))
    assert "[red]a" in shown(final_table({"method": "[red]a", "per_domain": {"[bold]b": {"accuracy": 1.0}}}))


def test_held_out_domains_and_temperature_are_shown_where_they_are():
    scores = {"prompt_uncertainty": None, "entropy": 0.75, "confidence": 0.6}
    ood = {"domains": ["noise", "chalk"], "images": 1234, "accuracy": 0.5, "nll": 2.0, "auroc": scores, "fpr95": scores}
    final = {**SUMMARY["final"], "temperature": 1.5, "nll_temperature": 0.55, "ece_temperature": 0.04, "ood": ood}
    text = shown(final_table({**SUMMARY, "final": final}))
    assert "held-out domains: noise, chalk" in text
    assert "1,234 images" in text
    assert "0.750, 0.750" in text
    assert "1 - confidence" in text
    assert "by prompt uncertainty" not in text
    assert "1.50" in text
    assert "0.550" in text
    plain = shown(final_table(SUMMARY))
    assert "held-out" not in plain
    assert "temperature" not in plain


def test_sizes_have_units():
    assert [size(value) for value in (0, 999, 1000, 2.5e9, None)] == ["0 B", "999 B", "1.0 kB", "2.5 GB", "–"]


def test_the_page_escapes_names_and_stands_alone(tmp_path):
    bad = "<script>alert('x')</script>"
    domains = {bad: {"images": 1, "accuracy": 1.0, "nll": 0.1}}
    write_json(tmp_path / "summary.json", {**SUMMARY, "method": bad, "per_domain": domains, "versions": {bad: bad}})
    (tmp_path / "config.yaml").write_text(f'method: "{bad}"\n')
    page = write_html(tmp_path).read_text()
    assert page.count("<script") == 1  # our own
    assert page.count("&lt;script&gt;alert(") >= 5
    assert "http" not in page
    assert "0.812 ± 0.051" in page


def test_a_comparison_groups_over_seeds_and_shows_the_standard_error(tmp_path):
    for seed, accuracy in enumerate((0.7, 0.8, 0.9)):
        add_run(tmp_path / f"a{seed}", accuracy, seed=seed)
    add_run(tmp_path / "b" / "deep", 0.5, method="fedvpt")
    table = compare(find_runs([tmp_path]))
    assert table.table.head == ["method", "runs", "accuracy", "NLL (nats)", "ECE"]
    # The standard deviation of .7, .8, .9 is .1, its standard error .1 / sqrt(3).
    assert rows_of(table) == (
        ("fedvpt", "1", "0.500", "0.610", "0.090"),
        ("pfedbayespt", "3", "0.800 ± 0.058", "0.610 ± 0.000", "0.090 ± 0.000"),
    )
    assert table.heading == "data styled_digits, partition domain_mixture, backbone vit"


def test_settings_that_differ_are_named_and_seeds_and_places_are_not(tmp_path):
    for extra in (2, 10):
        for seed in (0, 1):
            config = {"seed": seed, "run_dir": f"x{seed}", "inference": {"num_extra": extra, "beta": 0.1}}
            config["partition"] = {"seed": seed}
            add_run(tmp_path / f"{extra}-{seed}", config=config, seed=seed)
    table = compare(find_runs([tmp_path]))
    assert [row[1:3] for row in rows_of(table)] == [("num_extra=2", "2"), ("num_extra=10", "2")]


def test_rows_of_other_experiments_say_so_and_none_is_the_best(tmp_path):
    first = {"rounds": 5, "partition": {"alpha": 0.3}, "simulation": {"threads": 1}, "optim": {"lr": 0.1}}
    second = {"rounds": 2, "partition": {"alpha": 0.1}, "simulation": {"threads": 2}, "optim": {"lr": 0.3}}
    add_run(tmp_path / "a", 0.9, config=first)
    add_run(tmp_path / "b", 0.5, config=second, method="fedvpt")
    table = compare(find_runs([tmp_path]))
    assert [row[1] for row in rows_of(table)] == ["partition.alpha=0.1, rounds=2", "partition.alpha=0.3, rounds=5"]
    assert table.notes[1].endswith("so no best is marked; they differ in partition.alpha, rounds.")
    assert best_of(table) == []
    add_run(tmp_path / "c", 0.5, config={**first, "optim": {"lr": 0.3}}, method="fedvpt")
    alike = compare([tmp_path / "a", tmp_path / "c"])
    assert len(alike.notes) == 1
    assert "0.900" in best_of(alike)


def test_the_one_round_of_a_method_without_training_makes_no_other_experiment(tmp_path):
    add_run(tmp_path / "a", 0.9, config={"rounds": 5})
    add_run(tmp_path / "b", 0.8, config={"rounds": 1}, method="fedncm")
    table = compare(find_runs([tmp_path]))
    assert len(table.notes) == 1
    assert "rounds" not in str(rows_of(table))
    assert "0.900" in best_of(table)
    add_run(tmp_path / "c", 0.8, config={"rounds": 2}, method="fedncm")
    assert compare(find_runs([tmp_path])).notes[1].endswith("they differ in rounds.")


def test_a_value_that_only_repeats_another_is_named_once(tmp_path):
    for extra in (2, 10):
        values = {"num_extra": extra}
        add_run(tmp_path / str(extra), config={"inference": values, "method": {"client": {"inference": values}}})
    assert [row[1] for row in rows_of(compare(find_runs([tmp_path])))] == ["num_extra=2", "num_extra=10"]


def test_jobs_of_a_sweep_without_a_result_are_named(tmp_path):
    for job, status in enumerate(("finished", "failed", "running", "finished")):
        row = {"job": job, "overrides": [f"seed={job}"], "status": status}
        with (tmp_path / "sweep.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if status == "finished":
            add_run(tmp_path / str(job), seed=job)
    notes = compare(find_runs([tmp_path])).notes
    assert f"2 of 4 jobs of {tmp_path} have no result: seed=1; seed=2." in notes


def test_the_same_run_twice_counts_once_and_the_later_one(tmp_path):
    old, new = add_run(tmp_path / "new", 0.5), add_run(tmp_path / "old", 0.9)
    os.utime(old / "summary.json", (1, 1))
    table = compare([new, old])
    assert rows_of(table)[0][1:3] == ("1", "0.900")
    assert "1 older run" in table.notes[1]


def test_markdown_has_a_row_per_group_and_escapes_bars(tmp_path):
    add_run(tmp_path / "a", method="a|b")
    lines = compare([tmp_path / "a"], "best").as_markdown().splitlines()
    assert lines[2:5] == [
        "| method | runs | accuracy | NLL (nats) | ECE |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| a\\|b | 1 | 0.900 | 0.500 | 0.080 |",
    ]


def test_the_command_draws_again_and_compares(tmp_path, capsys):
    run = add_run(tmp_path / "sweep" / "0")
    assert main([str(tmp_path / "sweep"), str(run), "--markdown"]) == 0
    out, err = capsys.readouterr()
    assert "| pfedbayespt | 1 | 0.800 |" in out
    assert err.count("report.html") == 1  # a run that is named twice is one run
    assert (run / "report.html").exists()
    assert (run / "plots" / "clients.png").exists()


def test_the_command_leaves_pages_alone_when_asked(tmp_path, capsys):
    run = add_run(tmp_path / "0")
    assert main([str(run), "--table-only"]) == 0
    assert "pfedbayespt" in capsys.readouterr().out
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("place", ["final", "best", "seconds", "versions", "privacy", "per_domain", "per_client"])
def test_a_summary_that_is_none_is_said_in_one_line(tmp_path, capsys, place):
    run = add_run(tmp_path / "0")
    summary = json.loads((run / "summary.json").read_text())
    value = "x" if place != "per_client" else ["x"]
    (run / "summary.json").write_text(json.dumps({**summary, place: value}))
    assert main([str(run)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"RunError: {run / 'summary.json'} is no summary: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("case", ["missing", "empty", "unfinished", "broken"])
def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys, case):
    folder = tmp_path / "folder"
    if case != "missing":
        folder.mkdir()
    if case == "unfinished":
        (folder / "metrics.jsonl").write_text("")
    if case == "broken":
        (folder / "summary.json").write_text("{")
    assert main([str(folder)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("RunError: ")
    assert err.count("\n") == 1
    assert str(folder) in err
    assert ("1 unfinished" in err) == (case == "unfinished")


def test_a_sweeps_words_are_no_markup_and_a_row_may_lack_its_status(tmp_path):
    add_run(tmp_path / "0")
    rows = [{"job": 1, "overrides": ["x=[/evil]", "privacy.groups=[generator]"]}]
    (tmp_path / "sweep.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = "".join(shown(compare(find_runs([tmp_path])).for_terminal()).split())
    assert "x=[/evil],privacy.groups=[generator]" in text


def test_a_broken_run_does_not_cost_the_others_theirs(tmp_path, capsys):
    add_run(tmp_path / "good")
    add_run(tmp_path / "bad", seed=1)
    (tmp_path / "bad" / "partition.json").write_text("[]")
    assert main([str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "partition.json holds a list" in said.err
    assert "pfedbayespt" in said.out


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("summary.json", json.dumps({**SUMMARY, "final": {**SUMMARY["final"], "reliability": 7}})),
        ("partition.json", json.dumps({"scheme": "iid", "classes": ["a"], "domains": ["b"], "clients": "abc"})),
        ("gallery.json", json.dumps({"images": [{"label": 1}]})),
        ("metrics.jsonl", json.dumps({"phase": "train", "round": 1, "loss": 1.0, "bytes_up": "x"})),
    ],
)
def test_files_that_do_not_fit_cost_their_own_run_alone(tmp_path, capsys, name, text):
    add_run(tmp_path / "good")
    bad = add_run(tmp_path / "bad", seed=1)
    (bad / name).write_text(text + "\n")
    assert main([str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "pfedbayespt" in out
    (line,) = [one for one in err.splitlines() if one.startswith("RunError: ")]
    assert str(bad) in line
    assert "Traceback" not in err
