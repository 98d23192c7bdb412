"""The table of runs has the numbers of their files, with the run that each is of."""

import json

import pytest

import fedbayes
from fedbayes.errors import ConfigError, RunError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        words = ["experiment=smoke", "method=fedavg_head", f"seed={seed}", f"run_dir={found / str(seed)}"]
        fedbayes.simulate(words)
    return found


def test_a_row_per_run_has_the_numbers_of_its_summary(folder):
    table = fedbayes.frame(folder)
    assert list(table.columns[:6]) == ["run", "method", "data", "partition", "backbone", "seed"]
    assert table["seed"].tolist() == [0, 1]
    for _, row in table.iterrows():
        summary = json.loads((folder / str(row["seed"]) / "summary.json").read_text())
        assert row["final.accuracy.mean"] == summary["final"]["accuracy"]["mean"]
        assert row["best.nll"] == summary["best"]["nll"]
        assert row["per_domain.ink.images"] == summary["per_domain"]["ink"]["images"]


def test_rounds_and_clients_have_the_rows_of_their_files(folder):
    rounds = fedbayes.frame([folder / "0", str(folder / "1")], rows="rounds")
    lines = [json.loads(line) for seed in "01" for line in (folder / seed / "metrics.jsonl").read_text().splitlines()]
    assert rounds["phase"].tolist() == [line["phase"] for line in lines]
    assert rounds.groupby("seed")["bytes_up"].sum().tolist() == [25_584, 25_584]
    clients = fedbayes.frame(folder / "0", rows="clients")
    last = clients[(clients["phase"] == "test") & (clients["round"] == 2)]
    assert last["client"].tolist() == [0, 1, 2]
    assert set(clients["partition"]) == {"domain_mixture"}


def test_what_is_not_there_is_said(folder, tmp_path):
    with pytest.raises(RunError, match="holds no finished run"):
        fedbayes.frame(tmp_path)
    with pytest.raises(ConfigError, match="rows=epochs is unknown; choose one of summary, rounds, clients"):
        fedbayes.frame(folder, rows="epochs")
