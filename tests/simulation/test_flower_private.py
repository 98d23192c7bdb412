"""What Flower keeps private is where we touch it; a new Flower that moves it fails here first."""

import inspect
import re
from pathlib import Path
from typing import get_type_hints

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedbayes.simulation.flower_private import FIRST_NODE, RESTARTS, Run, claim_identity, client_error, empty_run, stamp


def test_messages_can_be_made_and_stamped():
    claim_identity()
    assert (TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id) == (1, 1, SUPERLINK_NODE_ID)
    message = Message(RecordDict({"config": ConfigRecord()}), FIRST_NODE, MessageType.TRAIN)
    assert "_message_id" in vars(message.metadata), "Message keeps its id under another name"
    stamp(message, "mine")
    assert message.metadata.message_id == "mine"
    assert Message(RecordDict(), reply_to=message).metadata.reply_to_message_id == "mine"


def test_our_nodes_are_none_of_flowers():
    assert SUPERLINK_NODE_ID == 1 < FIRST_NODE


def test_a_grid_describes_its_run_in_the_type_we_make():
    assert isinstance(empty_run(), Run)
    assert get_type_hints(Grid.run.fget)["return"] is Run


def test_a_clients_failure_has_flowers_code():
    assert client_error("why").code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION == 2


def test_flower_hands_the_resources_of_a_client_to_ray():
    from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
    from flwr.simulation.ray_transport.ray_actor import BasicActorPool

    assert all(isinstance(value, int | float) for value in RESTARTS.values())
    assert "client_resources[k] = v" in inspect.getsource(RayBackend._validate_client_resources)
    assert ".options(" in inspect.getsource(BasicActorPool.__init__)
    assert "**client_resources" in inspect.getsource(BasicActorPool.__init__)


def test_one_module_knows_them():
    root = Path(__file__).parents[2]
    files = [path for part in ("fedbayes", "clients", "strategies") for path in (root / part).rglob("*.py")]
    private = re.compile(r"^\s*(from|import) flwr\.(supercore|superlink|common|proto|server\b)", re.MULTILINE)
    assert [path.name for path in files if private.search(path.read_text(encoding="utf-8"))] == ["flower_private.py"]
