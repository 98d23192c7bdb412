"""A client factory for worker processes, whose clients write down where they live and fail where they are told to."""

import os
import time
from pathlib import Path

from scripted import Scripted


class RemoteFactory:
    """Makes a scripted client once per process.

    `dies`, `kills`, `hangs`, `freezes` and `raises` hold (round, partition). A client that dies takes its process with
    it once, one that kills does so each time. One that hangs is late, one that freezes never comes back.
    """

    def __init__(self, folder, dies=(), kills=(), hangs=(), freezes=(), raises=()):
        self.folder, self.dies, self.kills = str(folder), set(dies), set(kills)
        self.hangs, self.freezes, self.raises = set(hangs), set(freezes), set(raises)

    def __call__(self):
        if self.folder not in _made:
            _made[self.folder] = _Remote(self)
        return _made[self.folder]


_made = {}


class _Remote(Scripted):
    def __init__(self, script):
        super().__init__()
        self.script, self.folder = script, Path(script.folder)
        node = "here"
        if "RAY_RAYLET_PID" in os.environ:
            import ray

            node = ray.get_runtime_context().get_node_id()
        (self.folder / f"made-{os.getpid()}-{time.time_ns()}").write_text(node)

    def train(self, requests):
        where = (requests[0].server_round, requests[0].partition)
        if where in self.script.dies:
            died = self.folder / f"died-{where[0]}-{where[1]}"
            if not died.exists():
                died.touch()
                os._exit(1)
        if where in self.script.kills:
            os._exit(1)
        if where in self.script.hangs:
            time.sleep(6)
        if where in self.script.freezes:
            time.sleep(3600)
        if where in self.script.raises:
            raise ZeroDivisionError("rotten image")
        return super().train(requests)
