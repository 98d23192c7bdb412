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
    "method=fedvpt "
    f"data.domains=[{','.join(DOMAINS)}] data.classes=[{','.join(SIDES)}]"
)


def serve(overrides, node_configs, run_dir):
    """What `fedbayes_app.server_app` does, on nodes of this process."""
    cfg = configuration(overrides)
    grid = AppGrid(client_app.app, node_configs, {"overrides": overrides, "directory": ""})
    summary = run(cfg, run_dir, Served(device="cpu", threads=1, grid=grid))
    return summary, grid


def numbers(run_dir):
    return [{k: v for k, v in row.items() if "second" not in k} for row in read_rows(run_dir / "metrics.jsonl")]


def simulated(count):
    return [{"partition-id": p, "num-partitions": count} for p in range(count)]


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=pfedbayespt"],
        ["method=fedvpt", "method.client.personal=[head]", "participation=0.5"],
        ["method=fedncm", "evaluate.held_out=[noise]"],
    ],
    ids=lambda words: words[0].partition("=")[2],
)
def test_simulated_nodes_give_the_numbers_of_one_process(overrides, tmp_path):
    words = ["experiment=smoke", "clients=4", *overrides]
    serve(" ".join(words), simulated(4), tmp_path / "app")
    simulate([*words, "simulation.cohort=1", f"run_dir={tmp_path / 'process'}"])
    assert numbers(tmp_path / "app") == numbers(tmp_path / "process")
    assert len(numbers(tmp_path / "app")) > 4


@pytest.fixture
def nodes(tmp_path):
    """Three nodes with images of one domain each; the first knows two of three classes."""
    made = []
    for p, domain in enumerate(DOMAINS):
        folder = paint(tmp_path / f"images {p}", domain, list(SIDES)[: 3 if p else 2])
        made.append({"partition-id": p, "num-partitions": 3, "data-root": str(folder)})
    return made


def test_a_server_without_images_trains_nodes_that_have_some(nodes, tmp_path):
    summary, _ = serve(OWN, nodes, tmp_path / "run")
    assert list(summary["per_domain"]) == DOMAINS
    assert [row["partition"] for row in summary["per_client"]] == [0, 1, 2]
    assert [row["images"] for row in summary["per_domain"].values()] == [row["images"] for row in summary["per_client"]]
    assert not (tmp_path / "run" / "partition.json").exists(), "the server does not know who holds what"
    assert (tmp_path / "run" / "report.html").exists()
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "images 0" not in config
    said = fedbayes.load(tmp_path / "run").predict([tmp_path / "images 1" / "sand" / "left" / "0.png"])
    assert said.classes == tuple(SIDES)


def test_nodes_agree_on_labels_although_one_lacks_a_class(nodes, tmp_path):
    _, grid = serve(OWN, nodes, tmp_path / "run")
    # `right` is class 1 in the list, of the node without `top` as of the others.
    for context in grid.contexts.values():
        client = client_app.client_of(context)
        held = client.data.images
        assert held.classes == tuple(SIDES)
        assert {held.names[i].split("/")[1]: int(held.labels[i]) for i in range(len(held))}["right"] == 1


@pytest.mark.parametrize("share", [False, True])
def test_personal_parameters_leave_a_node_only_if_its_owner_says_so(nodes, tmp_path, share):
    if share:
        nodes = [{**one, "share-personal": True} for one in nodes]
    overrides = f"{OWN} method.client.personal=[head] participation=0.4"  # one client in a round, so one never trains
    _, grid = serve(overrides, nodes, tmp_path / "run")
    kept = checkpoint.latest(tmp_path / "run").personal
    rows = read_rows(tmp_path / "run" / "clients.jsonl", ("round", "phase", "partition"))
    trained = {row["partition"] for row in rows if row["phase"] == "train"}
    assert len(trained) < 3
    assert grid.asked.count("query.personal") > 0
    assert set(kept) == (trained if share else set())


def refusal(overrides, nodes, run_dir):
    with pytest.raises(RunError) as caught:
        serve(overrides, nodes, run_dir)
    assert not run_dir.exists(), "a run that cannot start leaves nothing behind"
    return str(caught.value)


def test_nodes_and_run_that_do_not_fit_are_refused_with_the_remedy(nodes, tmp_path):
    def without(key):
        return [nodes[0], {k: v for k, v in nodes[1].items() if k != key}, nodes[2]]

    there = tmp_path / "run"
    assert "partition 1 lacks data-root" in (said := refusal(OWN, without("data-root"), there))
    assert '--node-config \'data-root="DIR" partition-id=P' in said
    assert "lacks partition-id" in (said := refusal(OWN, without("partition-id"), there))
    assert "--node-config" in said
    two = OWN.replace("clients=3", "clients=2")
    assert "set clients to the number of SuperNodes" in refusal(two, nodes, there)
    four = OWN.replace("clients=3", "clients=4") + " simulation.patience=0"
    assert "3 of clients=4 came" in refusal(four, nodes, there)
    assert "nodes 1001 and 1002 both say that they hold" in refusal(OWN, [nodes[0], nodes[1], nodes[1]], there)
    common = "experiment=smoke clients=3"
    assert "set partition=local_folder" in refusal(common, nodes, there)
    renamed = OWN.replace("snow", "ice")
    assert "has snow, not among data.domains=[ink, sand, ice]" in refusal(renamed, nodes, there)


def test_only_a_flower_server_may_be_without_images():
    words = OWN.split()
    with pytest.raises(DataError, match="data has no images; set"):
        build.data(compose(words))
    with pytest.raises(DataError, match="data has no images; set"):
        build.data(compose(["simulation=flower", *words, "partition=iid"]))
    with pytest.raises(PartitionError, match=r"partition=local_folder .* 1797 images"):
        build.data(compose(["simulation=flower", "partition=local_folder"]))


def test_other_engines_and_open_quotes_are_refused():
    with pytest.raises(ConfigError, match="simulation=in_process does not run in a Flower App; leave it out"):
        configuration("simulation=in_process")
    with pytest.raises(ConfigError, match="close the quotation"):
        configuration("data.root='my photos")
    with pytest.raises(ConfigError, match="does not work in a Flower App, whose clients forget"):
        configuration("resume=runs/one")


def test_the_engine_needs_a_grid():
    with pytest.raises(RunError, match=r"start it with flower_app/run\.sh"):
        simulate(["experiment=smoke", "simulation=flower", "run_dir=nowhere"])
