import csv
import io
import json

import numpy as np
import pytest
from html_reader import Page
from run_files import HOSTILE, write_run
from safetensors.numpy import load_file, save_file

from fedbayes.errors import RunError
from fedbayes.report.figures.clients import prompt_codes
from fedbayes.report.run_page import NO_GALLERY, write_html
from fedbayes.storage.predictions import Predictions, read_predictions
from fedbayes.storage.run_dir import write_json

PNG = "iVBORw=="


def page_of(run_dir):
    return Page(write_html(run_dir).read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run, its summary and its page."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, write_run(folder), page_of(folder)


def table(page, begins):
    (found,) = [rows for caption, rows in page.tables.items() if caption.startswith(begins)]
    return [[text for text, _ in row] for row in found]


def test_the_map_holds_the_accuracy_of_each_client_in_each_domain(run):
    predictions = read_predictions(run[0])
    head, *rows = table(run[2], "Test accuracy of each client")
    assert head == ["client", "ink", HOSTILE]
    for client, row in enumerate(rows):
        assert row[0] == f"client {client}"
        for domain in (0, 1):
            chosen = (predictions.partitions == client) & (predictions.domains == domain)
            right = (predictions.probabilities.argmax(1) == predictions.labels)[chosen].mean()
            assert row[1 + domain] == f"{right:.2f} ({chosen.sum()})"


def test_headline_clients_seconds_and_partition_are_those_of_the_files(run):
    _, summary, page = run
    rows = {row[0]: row[1] for row in table(page, "Results on the test images")}
    assert rows["NLL, pooled (nats)"] == f"{summary['final']['nll']:.3f}"
    assert rows["AURC, area under the risk-coverage curve"] == f"{summary['final']['aurc']:.3f}"
    clients = table(page, "Each client")[1:]
    assert [row[:3] for row in clients] == [
        [str(row["partition"]), str(row["images"]), f"{row['accuracy']:.3f}"] for row in summary["per_client"]
    ]
    assert table(page, "Seconds by phase") == [
        ["run", "setup", "train", "evaluate", "aggregate", "other", "total"],
        ["run", "1.0", "6.0", "2.0", "0.5", "0.5", "10.0"],
    ]
    assert table(page, "Images of each client by domain")[1] == ["client 0", "10", "20"]
    assert table(page, "Images of each client by label")[3] == ["client 2", "8", "8", "7", "7"]
    assert table(page, "Images of each client by split")[1] == ["client 0", "5", "5", "20"]


def test_accuracy_is_drawn_against_calibration_and_against_the_bytes_so_far(run):
    text = (run[0] / "report.html").read_text()
    rows = [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["phase"] == "validation":
            at, accuracy = row["round"], row["accuracy"]
            assert f"<title>round {at}: accuracy {accuracy:.4f}, validation ECE 0.1000</title>" in text
            tip = f"round {at}: accuracy {accuracy:.4f}, bytes so far, both ways, all clients {30 * at}"
            assert f"<title>{tip}</title>" in text
    assert len(rows) == 8


@pytest.mark.usefixtures("no_pictures")
def test_the_tables_lie_beside_the_page_with_every_digit(tmp_path):
    run = tmp_path / "run"
    summary = write_run(run, method="a_b", per_domain={"=x|y": {"images": 10, "accuracy": 1 / 3, "nll": 1.0}})
    links = {a["href"] for tag, a in page_of(run).tags if tag == "a"}
    assert {"report.md", "report.csv", "report.tex"} <= links
    found = {}
    for row in csv.DictReader(io.StringIO((run / "report.csv").read_text())):
        found[row["table"], row["name"], row["measure"]] = float(row["value"])
    assert found["final", "", "nll"] == summary["final"]["nll"]
    assert found["best", "", "accuracy.worst_decile"] == summary["best"]["accuracy"]["worst_decile"]
    assert found["domain", "'=x|y", "accuracy"] == 1 / 3  # no formula
    assert found["bytes", "", "up"] == 1_234_567
    assert found["seconds", "", "train"] == 6.0
    for row in summary["per_client"]:
        assert found["client", str(row["partition"]), "accuracy"] == row["accuracy"]
    shown = (run / "report.md").read_text()
    assert f"| NLL, pooled (nats) | {summary['final']['nll']:.3f} |" in shown
    assert "| =x\\|y | 10 | 0.333 | 1.000 |" in shown
    latex = (run / "report.tex").read_text()
    assert latex.count(r"\begin{tabular}{l") == latex.count(r"\bottomrule") == 4
    assert rf"NLL, pooled (nats) & {summary['final']['nll']:.3f} &" in latex


def test_codes_of_some_of_a_clients_images_say_how_many_it_has():
    codes = {"points": [[0, 0, 0], [1, 1, 0]], "domains": ["ink"], "partition": 3}
    partition = {"clients": [{"partition": 3, "train": 1, "validation": 0, "test": 2}, {"partition": 4, "test": 9}]}
    assert prompt_codes(codes, partition).title.endswith("client 3, 2 of 3 images")
    partition["clients"][0]["train"] = 0
    assert prompt_codes(codes, partition).title.endswith("client 3")


def test_the_posterior_is_shown_where_there_is_one(run, tmp_path):
    write_run(tmp_path / "without", posterior=False)
    assert {"kl-title", "components-title", "saturation-title", "mixing-title"} <= set(run[2].ids)
    assert "kl-title" not in page_of(tmp_path / "without").ids


@pytest.mark.usefixtures("no_pictures")
def test_attack_privacy_unused_replies_and_new_clients_are_shown_where_there_were_any(tmp_path):
    privacy = {"noise": 1.5, "clip": 0.1, "delta": 0.01, "epsilon": [1.0, 2.5]}
    new = {"5": {"images": 7, "accuracy": {"mean": 0.25}, "nll": 1.0, "ece": 0.5, "brier": 0.75}}
    attack = {"name": "backdoor", "malicious": [3, 4]}
    write_run(tmp_path / "run", attack=attack, privacy=privacy, new_clients=new)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"round": 9, "phase": "train", "clients": 5, "replies": 3, "dropped_late": 2}\n')
    page = page_of(tmp_path / "run")
    assert ["malicious clients", "3, 4"] in table(page, "Malicious clients")
    assert ["epsilon after the last round, delta 0.01", "2.500"] in table(page, "Client-level differential privacy")
    assert ["replies too late", "2"] in table(page, "Replies that were not used")
    assert table(page, "New clients")[1] == ["5 steps", "7", "0.250", "1.000", "0.500", "0.750"]
    write_run(tmp_path / "quiet", attack={"name": "none", "malicious": []})
    assert "circumstances" not in page_of(tmp_path / "quiet").ids


def test_hostile_names_are_text_and_nothing_is_fetched(tmp_path):
    run = tmp_path / "run"
    write_run(run, method=HOSTILE, per_domain={HOSTILE: {"accuracy": 1.0}}, attack={"name": HOSTILE, "malicious": [1]})
    image = {"png": PNG, "attention": PNG, "label": HOSTILE, "predicted": "b", "domain": HOSTILE, "partition": HOSTILE}
    codes = {"points": [[0, 0, 0], [1, 1, 0]], "domains": [HOSTILE], "partition": HOSTILE, "what": HOSTILE}
    write_json(run / "gallery.json", {"images": {"mistakes": [image]}, "attention_note": HOSTILE, "codes": codes})
    text = write_html(run).read_text()
    page = Page(text)
    assert HOSTILE not in text
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert all(a.get("alt") and a["src"].startswith("data:") for tag, a in page.tags if tag == "img")
    assert page.fetched() == []
    assert "http" not in text
    assert [tag for tag, _ in page.tags].count("script") == 1  # our own
    assert not page.unclosed
    assert len(page.ids) == len(set(page.ids))


@pytest.mark.usefixtures("no_pictures")
def test_a_page_without_a_gallery_says_why(tmp_path):
    write_run(tmp_path / "run")
    assert NO_GALLERY in write_html(tmp_path / "run").read_text()
    write_json(tmp_path / "run" / "gallery.json", {"missing": "no images <here>"})
    assert "no images &lt;here&gt;" in write_html(tmp_path / "run").read_text()


def test_the_area_under_the_risk_coverage_curve_is_the_aurc():
    import torch

    from fedbayes.metrics.detection import aurc

    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), size=200).round(1)  # rounded, so that many are equal
    labels = rng.integers(3, size=200)
    found = Predictions(probabilities, labels, labels, labels)
    coverage, risk = found.risk_coverage()
    expected = aurc(torch.from_numpy(found.confidence), torch.from_numpy(found.right))
    assert risk.mean() == pytest.approx(expected, abs=1e-12)
    assert risk[-1] == pytest.approx(1 - found.right.mean())
    assert (coverage[0], coverage[-1]) == (1 / 200, 1)


def test_prompt_uncertainty_is_entropy_less_that_of_a_draw():
    none = np.zeros(1, int)
    even = np.array([[0.5, 0.5]])
    assert Predictions(even, none, none, none).prompt_uncertainty is None
    found = Predictions(even, none, none, none, np.array([0.1])).prompt_uncertainty
    assert found == pytest.approx(np.log(2) - 0.1)


def test_damaged_predictions_are_named(tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "run" / "predictions.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(RunError, match=r"predictions\.safetensors cannot be read"):
        write_html(tmp_path / "run")


def test_a_hundred_clients_make_a_page_of_moderate_size(tmp_path):
    write_run(tmp_path / "run", clients=100, rounds=100)
    assert write_html(tmp_path / "run").stat().st_size < 1_000_000


@pytest.mark.usefixtures("no_pictures")
def test_a_map_of_as_many_clients_as_domains_is_left_out_in_no_time(tmp_path):
    write_run(tmp_path / "run")
    n = 20_000
    said = {"probabilities": np.full((n, 2), 0.5, np.float32), "labels": np.zeros(n, np.int64)}
    save_file({**said, "domains": np.arange(n), "partitions": np.arange(n)}, tmp_path / "run/predictions.safetensors")
    assert "20000 clients and 20000 domains are too many for a table" in write_html(tmp_path / "run").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"probabilities": np.zeros(60, np.float32)},
        {"probabilities": np.full((60, 4), np.nan, np.float32)},
        {"labels": np.zeros(63, np.int64)},
        {"domains": np.zeros(60, np.float32)},
        {"partitions": np.zeros((60, 2), np.int64)},
        {"labels": np.full(60, 9)},
    ],
)
def test_predictions_of_another_form_are_refused(tmp_path, changes):
    write_run(tmp_path / "run")
    path = tmp_path / "run" / "predictions.safetensors"
    save_file({**load_file(path), **changes}, path)
    with pytest.raises(RunError, match="arrays that do not fit each other"):
        read_predictions(tmp_path / "run")


@pytest.mark.parametrize("number", ["1e999", "1e308", "-1e308", "1" + "0" * 400])
def test_numbers_that_no_chart_can_hold_are_no_rows_of_a_run(tmp_path, number):
    write_run(tmp_path / "run")
    for at, value in ((5, number), (6, "-1e308")):
        with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
            file.write(f'{{"round": {at}, "phase": "train", "loss": {value}}}\n')
    write_html(tmp_path / "run")
    (tmp_path / "run" / "partition.json").write_text(f'{{"clients": [{{"partition": {number}}}]}}')
    with pytest.raises(RunError, match=r"partition.json cannot be read \(.* is out of range"):
        write_html(tmp_path / "run")
