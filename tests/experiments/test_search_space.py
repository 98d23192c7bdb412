"""What is tried: all methods get as many candidates, three more past the edges, and none of them twice."""

import pytest
import search_space
from tune import PROTOCOLS

from fedbayes.config.compose import CONF, compose

METHODS = {path.stem for path in (CONF / "method").glob("*.yaml")}


def test_all_methods_get_six_candidates_which_compose():
    with_other_keys = {}
    for section in PROTOCOLS:
        for method in METHODS:
            candidates = search_space.candidates(method, section)
            more = len(search_space.FURTHER.get((section, method), ()))
            assert len(set(candidates)) == 6 + more
            for candidate in candidates:
                keys = tuple(search_space.values(candidate))
                owner = method if any(key.startswith("method.") for key in keys) else "pfedbayespt"
                with_other_keys[owner, keys] = candidate
    for (owner, _), candidate in with_other_keys.items():
        compose([f"method={owner}", *candidate])


@pytest.mark.parametrize(
    ("method", "section", "chosen", "expected"),
    [
        ("fedvpt", "mixture", (0.03, 0.01), [(0.1, 0.01), (0.03, 0.03), (0.1, 0.03)]),
        ("fedper", "label_skew", (0.003, 0.003), [(0.001, 0.003), (0.003, 0.001), (0.001, 0.001)]),
        ("pfedpg", "mixture", (0.01, 0.003), [(0.003, 0.001), (0.01, 0.001), (0.03, 0.001)]),
    ],
)
def test_past_the_edges_of_a_grid_of_two_rates(method, section, chosen, expected):
    def rates(prompt, head):
        return (f"optim.lr={prompt:g}", f"optim.head_lr={head:g}")

    assert search_space.beyond(method, section, rates(*chosen)) == [rates(*one) for one in expected]


def test_further_candidates_move_no_edge_and_are_not_tried_twice():
    """FedProx's best of six under label skew has .03 .01; its further ones, with mu 1 in front, hold .1 .03 already."""
    six, further = search_space.candidates("fedprox", "label_skew")[:6], search_space.FURTHER["label_skew", "fedprox"]
    corner = ("optim.lr=0.03", "optim.head_lr=0.01")
    ranked = [(0.5, 0.8, one) for one in (*further, corner, *six)]
    assert search_space.untried("fedprox", "label_skew", ranked) == [
        ("optim.lr=0.1", "optim.head_lr=0.01"),
        ("optim.lr=0.03", "optim.head_lr=0.03"),
    ]


def test_past_the_edges_of_other_grids():
    assert search_space.beyond("local_head", "mixture", ("optim.head_lr=0.003",)) == []
    assert search_space.beyond("local_head", "mixture", ("optim.head_lr=0.001",)) == [
        (f"optim.head_lr={rate}",) for rate in ("0.0003", "0.0001", "4e-05")
    ]
    inside = search_space.posteriors(0.01)[4]  # a code of 16 at rate .01, of .003, .01, .03
    moved = [dict(one.split("=") for one in found) for found in search_space.beyond("pfedbayespt", "mixture", inside)]
    assert [(one["optim.lr"], one["generator.init_scale"], one["optim.head_lr"]) for one in moved] == [
        ("0.01", "1.0", "0.01"),
        ("0.01", "0.5", "0.003"),
        ("0.01", "0.5", "0.03"),
    ]
    edge = search_space.posteriors(0.01)[2]  # a code on the prompts at rate .01, of .003, .01
    assert "optim.lr=0.03" in search_space.beyond("pfedbayespt", "mixture", edge)[0]
