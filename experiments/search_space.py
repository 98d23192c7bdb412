"""What `tune.py` tries: six configurations of each method, three past the edges of their grid, and those of `FURTHER`.

`protocol.md` says what each is for, `results/candidates.csv` what it had on validation.
"""

from collections.abc import Mapping, Sequence

from tables import selected

Candidate = tuple[str, ...]
Ranked = tuple[float, float, Candidate]
"""NLL and accuracy on validation, and of what."""


def pairs(prompt: Sequence[float], head: Sequence[float]) -> list[Candidate]:
    """Every pair of learning rates."""
    return [(f"optim.lr={p}", f"optim.head_lr={h}") for p in prompt for h in head]


def around(best: Candidate, key: str, values: Sequence[float]) -> list[Candidate]:
    """The best candidate with other values of a key."""
    return [(*best, f"{key}={value:g}") for value in values]


def posteriors(head: float) -> list[Candidate]:
    """A code on the prompts themselves and a code of 16 dimensions, three times each: rate and scale at the start."""
    return [
        (*space, f"optim.lr={rate}", f"generator.init_scale={scale}", f"optim.head_lr={head}")
        for space, rate, scale in [
            (FULL, 0.003, 0.1),
            (FULL, 0.003, 0.3),
            (FULL, 0.01, 0.1),
            (CODE, 0.003, 0.5),
            (CODE, 0.01, 0.5),
            (CODE, 0.03, 0.5),
        ]
    ]


FULL, CODE = ("generator.code_dim=full", "inference.beta=1e-5"), ("generator.code_dim=16", "inference.beta=1e-3")
PROMPT = (0.003, 0.01, 0.03)
DIGITS_HEAD, PHOTOS_HEAD = (0.003, 0.01), (0.001, 0.003)
HEAD_ALONE: list[Candidate] = [(f"optim.head_lr={h}",) for h in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)]
PERSONAL = ("pfedbayespt_personal", "gaussian_prompts_personal")
"""Posteriors whose heads, of one client each, want the smaller rate."""
POSTERIOR = ("pfedbayespt", "gaussian_prompts", *PERSONAL)
NO_PROMPTS = ("fedavg_head", "local_head")
PROMPTS_OF = {
    "pfedbayespt_lora": "pfedbayespt",
    "deterministic_lora": "deterministic_prompts",
    "fedvpt_lora": "fedvpt",
}
"""Prompts beside low-rank changes have what was chosen for the same prompts alone, and the rank chosen for `fedlora`;
their candidates are rates of the low-rank changes and of the head."""
TEMPERATURES = {
    "fedncm": (1, 2, 4, 8, 16, 32),
    "fedcof": (0.25, 0.5, 0.7, 1, 1.4, 2),
    "afl": (0.02, 0.05, 0.1, 0.2, 0.5, 1),
}
"""Of the probabilities of what is not trained; accuracy does not depend on it."""
PROMPT_LR, HEAD_LR = "optim.lr", "optim.head_lr"
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""A step beyond the edge of a grid is one place in this row."""
WHOLE = ("fedavg_full",)
"""All weights of the ViT want smaller rates than prompts."""
WEIGHTS = (0.0001, 0.0003, 0.001)
BEGAN = {
    "fedlora": {"method.weights.rank": "4", "method.weights.alpha": "8"},
    "fedavg_full": {"optim.weight_decay": "0"},
}
"""What a method had while it was tuned, where its default is a further candidate's."""

_BEST, _BEST_DIGITS = posteriors(0.001)[5], posteriors(0.01)[5]
_PERSONAL = posteriors(0.001)[2]
((_DITTO,), (_FEDPROX,)) = pairs((0.03,), (0.01,)), pairs((0.1,), (0.03,))
((_PRODUCT,), (_MEAN,)) = pairs((0.003,), (0.01,)), pairs((0.1,), (0.01,))
_DEEP = ((), ("optim.lr=0.01",), ("optim.lr=0.003", "optim.head_lr=0.003"))
_FEDVPT = ("optim.lr=0.01", "optim.head_lr=0.001")
_STEPS = (
    *("optim.schedule=cosine", "optim.batch_size=16", "optim.batch_size=64"),
    *("optim.weight_decay=0.01", "optim.weight_decay=0.1"),
)
_LENGTHS = ("prompts.length=4", "prompts.length=8", "prompts.length=32", "prompts.length=64")
_RANKS = tuple((f"method.weights.rank={rank}", f"method.weights.alpha={2 * rank}") for rank in (2, 8, 16))
_LOW_RANK = (
    *(*_RANKS, ("method.weights.alpha=16",), ("method.weights.freeze_a=true",)),
    ("method.weights.targets=[attn.qkv,attn.proj,mlp.fc1,mlp.fc2]",),
)
((_LORA,), (_LORA_PHOTOS,)) = pairs((0.003,), (0.003,)), pairs((0.001,), (0.0003,))
((_FULL,), (_FULL_PHOTOS,)) = pairs((0.0003,), (0.003,)), pairs((3e-05,), (0.0003,))
((_FULL_THEN,), (_FULL_FAST,)) = pairs((0.0003,), (0.002,)), pairs((0.0005,), (0.002,))
_FIXED, _ONE = ("optim.lr=0.03", "optim.head_lr=0.01"), ("optim.lr=0.01", "optim.head_lr=0.003")
FURTHER = {
    ("mixture", "pfedbayespt"): [
        *((*_BEST_DIGITS, more) for more in ("inference.beta=1e-2", "inference.beta=1e-4")),
        *((*_BEST_DIGITS, "prompts.depth=deep", *more) for more in _DEEP),
    ],
    ("mixture", "fedvpt"): [
        *((*_FIXED, more) for more in (*_LENGTHS, *_STEPS)),
        (*_FIXED, "prompts.length=32", "optim.schedule=cosine"),
        *pairs((0.03,), (0.005, 0.02)),
        *pairs((0.02, 0.05), (0.01,)),
    ],
    ("mixture", "deterministic_prompts"): [
        *((*_ONE, more) for more in (*_LENGTHS[1:3], *_STEPS, "generator.code_dim=4", "generator.code_dim=64")),
        *((*_ONE, more) for more in ("generator.decoder_scale=0.3", "generator.hidden=128")),
        *pairs((0.01,), (0.002, 0.005)),
        *pairs((0.02,), (0.003,)),
    ],
    ("mixture", "fedlora"): [
        *((*_LORA, *more) for more in _LOW_RANK),
        *((*_LORA, more) for more in ("method.weights.alpha=4", "method.weights.start_layer=1", *_STEPS[:4])),
        *pairs((0.005,), (0.003,)),
        *pairs((0.003,), (0.005,)),
    ],
    ("mixture", "fedavg_full"): [
        *((*_FULL, more) for more in _STEPS),
        *pairs((0.0002, 0.0005), (0.003,)),
        *pairs((0.0003,), (0.002, 0.005)),
        *pairs((0.0005,), (0.002,)),
        *((*one, _STEPS[0]) for one in pairs((0.0005, 0.001), (0.003,)) + pairs((0.001,), (0.001,))),
        (*pairs((0.0005,), (0.003,))[0], "optim.batch_size=64"),
        *around(_FULL_THEN, "optim.proximal", (0.001, 0.01, 0.1, 1)),
        *around(_FULL_THEN, "optim.clip", (0.3, 3)),
        *around(_FULL_THEN, "optim.weight_decay", (0.03, 0.1, 0.3)),
        *((*_FULL_THEN, more) for more in ("optim.clip=null", "optim.schedule=linear", "optim.batch_size=64")),
        *around((*_FULL_THEN, "server.name=momentum"), "server.lr", (0.3, 0.1)),
        *around((*_FULL_THEN, "server.name=adam"), "server.lr", (0.001, 0.0003)),
        *pairs((0.00025, 0.0004), (0.002,)),
        *pairs((0.0003,), (0.0015,)),
        *pairs((0.0005,), (0.001,)),
        *((*_FULL_FAST, more) for more in ("optim.schedule=cosine", "optim.schedule=linear", "optim.batch_size=64")),
        (*pairs((0.0005,), (0.003,))[0], "optim.schedule=linear"),
    ],
    ("label_skew", "local_vpt"): pairs((0.001, 0.003, 0.01), (0.001, 0.002)),
    ("label_skew", "ditto"): around(_DITTO, "method.client.strength", (0.1, 0.3, 3, 10)),
    ("label_skew", "fedprox"): [_FEDPROX, *around(_FEDPROX, "optim.proximal", (0.001, 0.1, 1))],
    ("label_skew", "pfedbayes_product"): around(_PRODUCT, "inference.beta", (0.0003, 0.001, 0.01, 0.03)),
    ("label_skew", "pfedbayes"): [_MEAN, *around(_MEAN, "inference.beta", (0.01, 0.03, 0.3, 1))],
    ("label_skew", "pfedbayespt_personal"): [
        _PERSONAL,
        *((*_PERSONAL, more) for more in ("inference.beta=1e-4", "inference.beta=1e-6", "generator.noise_dim=8")),
        (*_PERSONAL, "generator.init_scale=0.3"),
    ],
    ("photos", "pfedbayespt"): [
        (*_BEST, more)
        for more in (
            *("optim.lr=0.1", "inference.beta=1e-2", "inference.beta=1e-4"),
            *("generator.init_scale=1.0", "optim.head_lr=0.003", "inference.reverse=gaussian"),
            *("generator.noise_dim=8", "generator.code_dim=64", "method.strategy.aggregate=anchored"),
            *("generator.decoder_scale=0.1", "generator.decoder_scale=0.3"),
        )
    ]
    + [(*_BEST, "prompts.depth=deep", *more) for more in _DEEP],
    ("photos", "fedvpt"): [
        *pairs((0.1,), (0.001, 0.003)),
        *pairs((0.003, 0.01, 0.03), (0.0003,)),
        *pairs((0.001,), (0.001,)),
        *((*_FEDVPT, more) for more in (*_LENGTHS, *_STEPS[:2], "optim.weight_decay=0.01")),
        *pairs((0.01,), (0.002,)),
    ],
    ("photos", "fedlora"): [
        _LORA_PHOTOS,
        *((*_LORA_PHOTOS, *more) for more in _LOW_RANK),
        *((*_LORA_PHOTOS, more) for more in ("method.weights.start_layer=4", *_STEPS[:4])),
        *pairs((0.0003,), (0.0003, 0.0001)),
        *pairs((0.001,), (0.0001,)),
    ],
    ("photos", "fedavg_full"): [
        _FULL_PHOTOS,
        *((*_FULL_PHOTOS, more) for more in _STEPS),
        *pairs((1e-05,), (0.0003, 0.0001)),
        *pairs((3e-05,), (0.0001, 0.0005)),
        *pairs((0.0001,), (0.0001,)),
        *pairs((2e-05, 5e-05), (0.0003,)),
        *((*one, _STEPS[0]) for one in pairs((5e-05, 0.0001), (0.0003,))),
    ],
}
"""Trials beyond the six: of pFedBayesPT, of the strongest rivals, and how far from the global model clients may go, at
the best rates, where their labels differ. Some begin with the choice so far, which is made again beside them and counts
as no trial. `protocol.md` says what matches what."""


def candidates(method: str, section: str) -> list[Candidate]:
    """Six configurations of a method, and those of `FURTHER` behind them, each with what is in `BEGAN`."""
    head = PHOTOS_HEAD if section == "photos" else DIGITS_HEAD
    if method in TEMPERATURES:
        return [(f"method.strategy.temperature={one:g}",) for one in TEMPERATURES[method]]
    if method in NO_PROMPTS:
        return HEAD_ALONE
    if method in PROMPTS_OF:
        return beside_low_rank(PROMPTS_OF[method], section, (0.0003, 0.001) if section == "photos" else head)
    if method in POSTERIOR:
        first = posteriors(head[0] if section == "photos" or method in PERSONAL else head[1])
    else:
        first = pairs(WEIGHTS if method in WHOLE else PROMPT, head)
    return [as_it_began(method, one) for one in (*first, *FURTHER.get((section, method), []))]


def beside_low_rank(prompts: str, section: str, head: Sequence[float]) -> list[Candidate]:
    """The choice for prompts alone and the rank of `fedlora`, with each pair of rates of low-rank changes and head."""
    prompt_settings = [setting for setting in selected(section, prompts) if not setting.startswith(f"{HEAD_LR}=")]
    rank = [setting for setting in selected(section, "fedlora") if setting.startswith("method.weights.")]
    rates = (0.0003, 0.001, 0.003) if section == "photos" else (0.001, 0.003, 0.01)
    return [
        (*prompt_settings, *rank, f"optim.weights_lr={weights}", f"{HEAD_LR}={outer}")
        for weights in rates
        for outer in head
    ]


def as_it_began(method: str, candidate: Candidate) -> Candidate:
    """A candidate with what is in `BEGAN`, but for what it says itself."""
    return (
        *candidate,
        *(f"{key}={text}" for key, text in BEGAN.get(method, {}).items() if key not in values(candidate)),
    )


def beyond(method: str, section: str, chosen: Candidate) -> list[Candidate]:
    """Three configurations past the edges of the grid on which the best of the six lies; none if it lies on none.

    Two rates: one step in the prompt rate, in the head rate, in both; with the prompt rate inside, the next head rate
    and each prompt rate. A posterior: one step in its rate (the scale 1 if that lies inside), and the head rates on
    both sides of the only one that its grid has. A head rate or a temperature alone: the next three.
    """
    six = candidates(method, section)[:6]
    grid, at = [values(one) for one in six], values(chosen)
    if len(at) == 1:
        ((key, last),) = at.items()
        ladder = sorted(float(one[key]) for one in grid)
        if float(last) not in (ladder[0], ladder[-1]):
            return []
        factor = ladder[-1] / ladder[-2] if float(last) == ladder[-1] else ladder[0] / ladder[1]
        return [(f"{key}={float(f'{float(last) * factor**power:.1g}'):g}",) for power in (1, 2, 3)]
    alike = [one for one in grid if one.get("generator.code_dim") == at.get("generator.code_dim")]
    rate, head = step(PROMPT_LR, at, alike), step(HEAD_LR, at, grid)
    if method in POSTERIOR:
        place = RATES.index(float(at[HEAD_LR]))
        first = {PROMPT_LR: f"{rate:g}"} if rate else {"generator.init_scale": "1.0"}
        moves = [first, *({HEAD_LR: f"{RATES[place + side]:g}"} for side in (-1, 1))]
    elif rate:
        moves = [{PROMPT_LR: f"{rate:g}"}, {HEAD_LR: f"{head:g}"}, {PROMPT_LR: f"{rate:g}", HEAD_LR: f"{head:g}"}]
    else:
        moves = [{PROMPT_LR: one, HEAD_LR: f"{head:g}"} for one in dict.fromkeys(row[PROMPT_LR] for row in grid)]
    return [tuple(f"{key}={text}" for key, text in {**at, **move}.items()) for move in moves]


def untried(method: str, section: str, ranked: Sequence[Ranked]) -> list[Candidate]:
    """What lies past the edges and has not been tried; what `FURTHER` has found moves no edge."""
    six, had = candidates(method, section)[:6], [values(one) for *_, one in ranked]
    best = next(one for *_, one in ranked if one in six)
    return [one for one in beyond(method, section, best) if values(one) not in had]


def values(candidate: Sequence[str]) -> dict[str, str]:
    """A candidate's values by their keys."""
    return dict(one.split("=", 1) for one in candidate)


def step(key: str, at: Mapping[str, str], grid: Sequence[Mapping[str, str]]) -> float | None:
    """The rate one step past the edge of a grid on which one lies; None inside."""
    place, seen = RATES.index(float(at[key])), [RATES.index(float(one[key])) for one in grid]
    side = 0 if max(seen) == min(seen) else (place >= max(seen)) - (place <= min(seen))
    return RATES[place + side] if side else None
