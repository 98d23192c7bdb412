"""Server and clients of the Flower App in one process: the command's numbers, and clients with images of their own."""

import pytest
from app_grid import AppGrid
from fedbayes_app import client_app
from fedbayes_app.settings import configuration
from side_images import SIDES, paint

import fedbayes
from fedbayes import build
from fedbayes.config.compose import compose
from fedbayes.errors import ConfigError, DataError, PartitionError, RunError
from fedbayes.run import run, simulate
from fedbayes.simulation.superlink import Served
from fedbayes.storage import checkpoint
from fedbayes.storage.run_dir import read_rows

pytestmark = pytest.mark.usefixtures("no_pictures")

DOMAINS = ["ink", "sand", "snow"]
OWN = (
    "experiment=smoke clients=3 data=imagefolder data.root=null data.image_size=16 partition=local_folder "
    f"method=fedvpt data.domains=[{','.join(DOMAINS)}] data.classes=[{','.join(SIDES)}]"
)


def serve(overrides, node_configs, run_dir):
    """What `fedbayes_app.server_app` does, on nodes of this process."""
    cfg = configuration(overrides)
    grid = AppGrid(client_app.app, node_configs, {"overrides": overrides, "directory": ""})
    summary = run(cfg, run_dir, Served(device="cpu", threads=1, grid=grid))
    return summary, grid


def numbers(run_dir):
    return [{k: v for k, v in row.items() if "second" not in k} for row in read_rows(run_dir / "metrics.jsonl")]


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=pfedbayespt"],
        ["method=fedvpt", "method.client.personal=[head]", "participation=0.5"],
        ["method=fedncm", "evaluate.held_out=[noise]"],
        ["method=fedlora", "sparse=ist"],
    ],
    ids=lambda words: words[0].partition("=")[2],
)
def test_simulated_nodes_give_the_numbers_of_one_process(overrides, tmp_path):
    words = ["experiment=smoke", "clients=4", *overrides]
    serve(" ".join(words), [{"partition-id": p, "num-partitions": 4} for p in range(4)], tmp_path / "app")
    simulate([*words, "simulation.cohort=1", f"run_dir={tmp_path / 'process'}"])
    assert numbers(tmp_path / "app") == numbers(tmp_path / "process")
    assert len(numbers(tmp_path / "app")) > 4


@pytest.fixture
def nodes(tmp_path):
    """Three nodes with images of one domain each; the first knows two of three classes."""
    folders = [paint(tmp_path / f"images {p}", d, list(SIDES)[: 3 if p else 2]) for p, d in enumerate(DOMAINS)]
    return [{"partition-id": p, "num-partitions": 3, "data-root": str(folder)} for p, folder in enumerate(folders)]


def test_a_server_without_images_trains_nodes_that_agree_on_labels(nodes, tmp_path):
    run_dir = tmp_path / "run"
    summary, grid = serve(OWN, nodes, run_dir)
    assert list(summary["per_domain"]) == DOMAINS
    assert [row["partition"] for row in summary["per_client"]] == [0, 1, 2]
    assert [row["images"] for row in summary["per_domain"].values()] == [row["images"] for row in summary["per_client"]]
    assert not (run_dir / "partition.json").exists(), "the server does not know who has what"
    assert (run_dir / "report.html").exists()
    assert "images 0" not in (run_dir / "config.yaml").read_text()
    predictions = fedbayes.load(run_dir).predict([tmp_path / "images 1" / "sand" / "left" / "0.png"])
    assert predictions.classes == tuple(SIDES)
    # `right` is class 1 in the list, of the node without `top` as of the others.
    for context in grid.contexts.values():
        images = client_app.client_of(context).data.images
        assert images.classes == tuple(SIDES)
        labels = {name.split("/")[1]: label for name, label in zip(images.names, images.labels.tolist(), strict=True)}
        assert labels["right"] == 1


@pytest.mark.parametrize("share", [False, True])
def test_personal_parameters_leave_a_node_only_if_its_owner_says_so(nodes, tmp_path, share):
    if share:
        nodes = [{**node, "share-personal": True} for node in nodes]
    overrides = f"{OWN} method.client.personal=[head] participation=0.4"  # one client in a round, so one never trains
    _, grid = serve(overrides, nodes, tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "clients.jsonl", ("round", "phase", "partition"))
    trained = {row["partition"] for row in rows if row["phase"] == "train"}
    assert len(trained) < 3
    assert "query.personal" in grid.asked
    assert set(checkpoint.latest(tmp_path / "run").personal) == (trained if share else set())


@pytest.mark.parametrize(
    ("overrides", "change", "message"),
    [
        (OWN, lambda nodes: nodes[1].pop("data-root"), "partition 1 lacks data-root"),
        (OWN, lambda nodes: nodes[1].pop("partition-id"), "lacks partition-id.*--node-config"),
        (OWN, lambda nodes: nodes[2].update(nodes[1]), "nodes 1001 and 1002 .*partition 1"),
        (OWN.replace("clients=3", "clients=2"), None, "clients=2; set clients"),
        (OWN.replace("clients=3", "clients=4") + " simulation.patience=0", None, "3 of clients=4"),
        (OWN.replace("snow", "ice"), None, r"snow.*data\.domains=\[ink, sand, ice\]"),
        ("experiment=smoke clients=3", None, "partition=local_folder"),
    ],
)
def test_nodes_and_run_that_do_not_fit_are_refused_and_leave_nothing(nodes, tmp_path, overrides, change, message):
    if change is not None:
        change(nodes)
    with pytest.raises(RunError, match=message):
        serve(overrides, nodes, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_only_a_flower_server_may_be_without_images():
    for words in (OWN.split(), ["simulation=flower", *OWN.split(), "partition=iid"]):
        with pytest.raises(DataError, match=r"data\.root"):
            build.data(compose(words))
    with pytest.raises(PartitionError, match=r"partition=local_folder .* 1797 images"):
        build.data(compose(["simulation=flower", "partition=local_folder"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("simulation=in_process", "simulation=in_process .*Flower App"),
        ("data.root='my photos", "close the quotation"),
        ("resume=runs/one", "resume=.* Flower App"),
    ],
)
def test_other_engines_and_open_quotes_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        configuration(overrides)


def test_the_engine_needs_a_grid():
    with pytest.raises(RunError, match=r"flower_app/run\.sh"):
        simulate(["experiment=smoke", "simulation=flower", "run_dir=nowhere"])
