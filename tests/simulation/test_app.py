"""What a node-config means, and how a ClientApp answers for it."""

import pytest
from app_grid import AppGrid
from flwr.app import Message
from scripted import SIZES, Scripted

from fedbayes.comm.messages import ask_personal
from fedbayes.errors import ConfigError, RunError
from fedbayes.server.federation import Federation
from fedbayes.server.validation import Rejection, ReplyValidator
from fedbayes.simulation.app import client_app, partition_of, root_of, shares_personal
from fedbayes.simulation.client import QUERY_PERSONAL

REFUSAL = "this node keeps what is personal"


def test_a_simulated_node_has_a_partition_and_shares_everything():
    node = {"partition-id": 2, "num-partitions": 3}
    assert (partition_of(node), root_of(node, 3, needed=False), shares_personal(node)) == (2, None, True)


def test_a_deployed_node_has_a_folder_and_shares_what_its_owner_says():
    node = {"partition-id": 0, "data-root": "my images"}
    assert root_of(node, 3, needed=True) == "my images"
    assert not shares_personal(node)
    assert not shares_personal({**node, "share-personal": "true"}), "only true itself is a yes"
    assert shares_personal({**node, "share-personal": True})


@pytest.mark.parametrize("node", [{}, {"partition-id": -1}, {"partition-id": "0"}, {"partition-id": True}])
def test_a_node_without_a_partition_is_told_how_to_get_one(node):
    with pytest.raises(ConfigError, match=r"partition-id.*--node-config 'data-root"):
        partition_of(node)


@pytest.mark.parametrize(
    ("node", "needed", "message"),
    [
        ({"partition-id": 1, "num-partitions": 2}, False, "partition 1 .*num-partitions=2.*clients=3"),
        ({"partition-id": 3}, False, "partition 3 .*clients=3"),
        ({"partition-id": 1}, True, "partition 1 lacks data-root"),
        ({"partition-id": 1, "data-root": "x"}, False, r"data-root=x.*partition=local_folder"),
    ],
)
def test_a_node_that_does_not_fit_the_run_is_refused(node, needed, message):
    with pytest.raises(ConfigError, match=message):
        root_of(node, 3, needed=needed)


def test_a_node_that_keeps_what_is_personal_answers_with_an_error():
    client = Scripted(keeps=True)
    nodes = [{"partition-id": 0}, {"partition-id": 1, "data-root": "x"}]
    grid = AppGrid(client_app(lambda _: client), nodes, {})
    personal, rejected = Federation(grid, 2, ReplyValidator(1e8), SIZES).personal({0: 0, 1: 0})
    assert personal == {0: {}}, "it has stored nothing yet"
    assert rejected == {1: Rejection("failed", REFUSAL)}
    questions = [Message(ask_personal(0), node, QUERY_PERSONAL) for node in grid.get_node_ids()]
    errors = [reply.error.reason for reply in grid.send_and_receive(questions) if reply.has_error()]
    assert errors == [REFUSAL]


def test_a_users_mistake_reaches_the_server_in_the_same_words():
    def refuse(_):
        raise ConfigError("colour=blue is unknown; choose red.")

    grid = AppGrid(client_app(refuse), [{"partition-id": 0}], {})
    with pytest.raises(RunError, match=r": ConfigError: colour=blue is unknown; choose red\.$"):
        Federation(grid, 1, ReplyValidator(1e8), SIZES)
