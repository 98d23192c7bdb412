"""A federated linear head and VPT, written plainly for Flower's runtime: what `benchmark_peers.py` compares with.

As in Flower's tutorials: a ClientApp that makes its model for each message, a torch optimiser and a data loader,
`FedAvg`, and `run_simulation` with one core per client. Images, partition, backbone and rates are those of
`fedbayes method=fedavg_head` and `method=fedvpt`.
"""

import itertools
import time
from functools import lru_cache
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

METHODS = {"fedavg_head": 0, "fedvpt": 16}
"""Methods of ours and the prompts they have."""


class PlainVPT(nn.Module):
    """A frozen ViT with learnt prompts before block 2 and a linear head.

    Args:
        vit: a ViT of timm's.
        prompts: how many; 0 is the linear probe.
        classes: of the head.
    """

    def __init__(self, vit: nn.Module, prompts: int, classes: int) -> None:
        super().__init__()
        self.vit = vit.eval().requires_grad_(False)
        self.prompts = nn.Parameter(0.02 * torch.randn(prompts, vit.embed_dim))
        self.head = nn.Linear(vit.embed_dim, classes)
        nn.init.zeros_(self.head.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores of pixels 0 to 255."""
        x = self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(images.float() / 127.5 - 1)))
        for i, block in enumerate(self.vit.blocks):
            if i == 2 and len(self.prompts):
                x = torch.cat([x[:, :1], self.prompts.expand(len(x), -1, -1), x[:, 1:]], dim=1)
            x = block(x)
        return self.head(self.vit.norm(x)[:, 0])

    def shared(self) -> dict[str, torch.Tensor]:
        """What clients send."""
        return {name: value.detach() for name, value in self.named_parameters() if not name.startswith("vit.")}


@lru_cache(maxsize=1)
def federated() -> Any:
    """The images and who holds which, once per process."""
    from fedbayes import build
    from fedbayes.config.compose import compose

    return build.data(compose([]))


def model(prompts: int) -> PlainVPT:
    """A fresh model with the shipped weights."""
    from fedbayes.models.zoo import shipped

    torch.manual_seed(0)
    return PlainVPT(shipped(image_size=32).vit, prompts, federated().num_classes)


app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Two epochs of AdamW on the client's images."""
    torch.set_num_threads(1)
    config = message.content["config"]
    net = model(int(config["prompts"]))
    net.load_state_dict(message.content["arrays"].to_torch_state_dict(), strict=False)
    data = federated()
    mine = data.indices(int(context.node_config["partition-id"]), "train")
    loader = DataLoader(TensorDataset(data.images.images[mine], data.images.labels[mine]), batch_size=32, shuffle=True)
    groups = [{"params": [net.prompts], "lr": 0.03}, {"params": net.head.parameters(), "lr": 0.01}]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
    for _ in range(2):
        for images, labels in loader:
            optimiser.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            torch.nn.utils.clip_grad_norm_([p for p in net.parameters() if p.requires_grad], 1.0)
            optimiser.step()
    content = {"arrays": ArrayRecord(net.shared()), "metrics": MetricRecord({"num-examples": len(mine)})}
    return Message(RecordDict(content), reply_to=message)


def plain(method: str, rounds: int) -> dict[str, Any]:
    """One run on Flower's runtime; seconds of its rounds and the test accuracy at its end."""
    from flwr.simulation import run_simulation

    from fedbayes.simulation.hardware import available_cores

    started = time.time()
    result: dict[str, Any] = {}
    server = ServerApp()

    @server.main()
    def main(grid: Grid, _: Context) -> None:
        data = federated()
        net = model(METHODS[method])
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=len(data), min_available_nodes=len(data))
        times: list[float] = []

        def clock(server_round: int, _: ArrayRecord) -> MetricRecord:
            times.append(time.time())
            return MetricRecord({"round": server_round})

        config = ConfigRecord({"prompts": METHODS[method]})
        arrays = strategy.start(grid, ArrayRecord(net.shared()), rounds, train_config=config, evaluate_fn=clock).arrays
        net.load_state_dict(arrays.to_torch_state_dict(), strict=False)
        hits = []
        with torch.no_grad():
            for partition in range(len(data)):
                test = data.indices(partition, "test")
                found = net(data.images.images[test]).argmax(1)
                hits.append(float((found == data.images.labels[test]).float().mean()))
        result["rounds"] = [after - before for before, after in itertools.pairwise(times)][1:]
        result["start_up"] = times[0] - started
        result["accuracy"] = sum(hits) / len(hits)

    init = {"num_cpus": available_cores(), "log_to_driver": False}
    backend = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": init}
    run_simulation(server, app, num_supernodes=len(federated()), backend_config=backend)
    return result
