"""A Flower ClientApp without Flower's runtimes: its nodes answer here, each from its own context."""

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedbayes.simulation.flower_private import FIRST_NODE, claim_identity, empty_run, stamp


class AppGrid(Grid):
    """Answers as Flower does: a failed handler becomes an error reply, and its node's state stays as it was."""

    def __init__(self, app, node_configs, run_config):
        claim_identity()
        self._app, self._run, self._sent = app, empty_run(), 0
        self.contexts = {
            FIRST_NODE + i: Context(1, FIRST_NODE + i, dict(config), RecordDict(), dict(run_config))
            for i, config in enumerate(node_configs)
        }
        self.replies = {}
        self.asked = []

    def set_run(self, run):
        self._run = run

    @property
    def run(self):
        return self._run

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self):
        return list(self.contexts)[::-1]  # in no order that anything may rely on

    def push_messages(self, messages):
        ids = []
        for message in messages:
            self._sent += 1
            stamp(message, f"message-{self._sent}")
            self.asked.append(message.metadata.message_type)
            try:
                reply = self._app(message=message, context=self.contexts[message.metadata.dst_node_id])
            except Exception as error:
                reply = Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)
            self.replies[message.metadata.message_id] = reply
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids):
        return [self.replies.pop(i) for i in list(message_ids) if i in self.replies]

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))
