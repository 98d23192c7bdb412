"""A federation whose answers are known, on the real engine and the real round loop."""

import numpy as np
from journal import Journal

from fedbayes.comm.messages import ClientUpdate
from fedbayes.server.evaluate_round import Assessment
from fedbayes.server.rounds import RoundLoop
from fedbayes.server.sampling import Sampling
from fedbayes.server.train_round import Training
from fedbayes.server.validation import PartitionSizes, ReplyValidator
from fedbayes.simulation.faults import Faults
from fedbayes.simulation.in_process import InProcessGrid
from strategies.averaging import Averaging

SETTINGS = {
    "rounds": 2,
    "clients": 5,
    "participation": 1.0,
    "seed": 0,
    "min_replies": 1,
    "timeout": None,
    "patience": 0,
    "evaluate_fraction": 1.0,
    "evaluate_every": 1,
    "best_by": "accuracy",
    "temperature": False,
    "held_out": False,
    "new_clients": 0,
    "adapt_steps": (0,),
    "passes": 1,
    "retries": 0,
    "max_update_norm": None,
    "backdoor": False,
    "faults": None,
    "max_norm": 1e8,
    "checkpoint_every": 1,
}
SIZES = PartitionSizes(classes=2, domains=1, images={})


class Scripted:
    """Answers w = partition + 1 from 10 * (partition + 1) images, and is right on `skill` of 4 images."""

    def __init__(self, broken=(), silent=(), skill=None, keeps=False):
        self.broken, self.silent, self.skill, self.keeps = set(broken), set(silent), skill or {}, keeps
        self.trained, self.evaluated = [], []

    def prepare(self):
        pass

    def initial(self):
        return {"w": np.zeros(1)}

    def train(self, requests):
        self.trained += [(r.server_round, r.partition) for r in requests]
        self.last = {r.partition: (r.arrays, r.personal) for r in requests}
        answers = []
        for r in requests:
            bad = (r.server_round, r.partition) in self.broken
            arrays = {"w": np.full(1, np.nan if bad else r.partition + 1.0)}
            mine = {"head": np.full(2, r.server_round + 10.0 * r.partition, np.float32)} if self.keeps else {}
            answers.append(ClientUpdate(r.partition, arrays, 10 * (r.partition + 1), {"loss": r.partition}, mine))
        return answers

    def evaluate(self, requests):
        self.evaluated.append((requests[0].server_round, requests[0].split))
        self.last_parameters = {r.partition: {**r.arrays, **r.personal} for r in requests}
        answers = []
        for r in requests:
            right = self.skill.get((r.server_round, r.split), 2)
            probabilities = np.tile(np.array([[0.8, 0.2]], np.float32), (4, 1))
            labels = np.array([0] * right + [1] * (4 - right))
            if r.partition in self.silent:
                probabilities[:] = np.nan
            arrays = {
                "probabilities": probabilities,
                "expected_entropy": np.zeros(4, np.float32),
                "labels": labels,
                "domains": np.zeros(4, np.int64),
            }
            answers.append(ClientUpdate(r.partition, arrays, 4, {"accuracy": right / 4, "nll": 0.5}))
        return answers


def round_loop(**settings):
    chosen = {**SETTINGS, **settings}

    def same(*names):
        return {name: chosen[name] for name in names}

    sampling = Sampling(**same("clients", "participation", "seed", "evaluate_fraction", "new_clients"))
    faults = Faults(seed=chosen["seed"], **(chosen["faults"] or {}))
    training = Training(
        sampling=sampling, faults=faults, **same("min_replies", "retries", "max_update_norm", "timeout", "passes")
    )
    assessment = Assessment(
        sampling=sampling,
        every=chosen["evaluate_every"],
        **same("best_by", "temperature", "held_out", "backdoor", "adapt_steps", "timeout"),
    )
    validator = ReplyValidator(chosen["max_norm"])
    rest = same("rounds", "patience", "checkpoint_every")
    return RoundLoop(training=training, assessment=assessment, validator=validator, **rest)


def play(client, grid=None, strategy=None, save=None, stored=None, sizes=SIZES, **settings):
    loop, journal = round_loop(**settings), Journal()
    grid = grid or InProcessGrid(client, loop.sampling.clients)
    strategy = strategy or Averaging()
    return loop.run(grid, strategy, client.initial(), journal, sizes, save=save, checkpoint=stored), journal, grid
