"""What is compared on what: the methods in two waves and ablations, and the protocol of every table."""

from dataclasses import dataclass

FIRST = (
    *(
        "pfedbayespt",
        "pfedbayespt_personal",
        "gaussian_prompts",
        "deterministic_prompts",
        "fedvpt",
        "fedvpt_deep",
        "fedper",
        "pfedpg",
    ),
    *("fedavg_head", "local_vpt", "fedncm", "fedcof"),
)
SECOND = (
    *("fedprox", "local_head", "fedrep", "fedbabu", "ditto", "sgpt", "pep_fedpt", "pfpt", "fedapt"),
    *("pfedbayes_product", "pfedbayes", "fedlora", "fedavg_full", "centralised"),
)
THIRD = (
    *("pfedbayespt_lora", "deterministic_lora", "fedvpt_lora", "flexlora", "fedsa_lora"),
    *("fedrod", "fedavg_ft", "knn_per", "afl", "fedssf", "fedins", "fedadapter", "feddpa"),
)
"""What came after the tables: prompts beside low-rank changes, other averages of these, and further rivals."""
ABLATIONS = ("gaussian_prompts_personal", "deterministic_prompts_personal")
"""What tells whether personal heads or the posterior make the difference of `pfedbayespt_personal`."""
WAVES = {"first": FIRST, "second": SECOND, "third": THIRD, "ablations": ABLATIONS, "both": (*FIRST, *SECOND)}
EVERY = (*WAVES["both"], *THIRD, *ABLATIONS)


@dataclass(frozen=True)
class Table:
    """One protocol, run for many methods.

    Attributes:
        title: what it is.
        overrides: the protocol.
        settings: the section of `selected.yaml` whose choices it uses.
        data: folder of images that it needs, below the one named by `--data`; None for what comes with the packages.
        backbone: whether it needs the weights named by `--weights`.
        new_clients: whether it is about clients that never trained.
    """

    title: str
    overrides: tuple[str, ...]
    settings: str
    data: str | None = None
    backbone: bool = False
    new_clients: bool = False


TABLES: dict[str, Table] = {
    "digits_mixture": Table("Styled digits, every client a mixture of five styles (alpha 0.3)", (), "mixture"),
    "digits_label_skew": Table("Styled digits, label Dirichlet 0.1", ("experiment=digits_label_skew",), "label_skew"),
    "digits_mixture_and_label": Table(
        "Styled digits, styles and labels both mixed (alpha 0.3 and 0.1)",
        ("experiment=digits_mixture_and_label",),
        "label_skew",
    ),
    "digits_new_clients": Table(
        "Styled digits, three of ten clients new after training",
        ("evaluate.new_clients=3",),
        "mixture",
        new_clients=True,
    ),
    "three_digits": Table(
        "MNIST, USPS and scikit-learn's digits, mixed (alpha 0.3)",
        ("experiment=three_digits",),
        "mixture",
        data="digits",
    ),
    "office_mixture": Table(
        "Office-Caltech10, every client a mixture of four domains (alpha 0.3), ViT-tiny at 112 px",
        ("experiment=office_mixture",),
        "photos",
        data="office_caltech10",
        backbone=True,
    ),
    "office_fedbn_truncated": Table(
        "Office-Caltech10, one domain a client, equal sizes (FedBN-10 truncated), ViT-tiny at 112 px",
        ("experiment=office_fedbn_truncated",),
        "photos",
        data="office_caltech10",
        backbone=True,
    ),
    "cifar10_dirichlet": Table(
        "CIFAR-10 (5,085 training images), ten clients, label Dirichlet 0.1, ViT-tiny at 112 px",
        ("experiment=cifar10_dirichlet", "data=imagefolder"),
        "photos",
        data="cifar10",
        backbone=True,
    ),
    "cifar10_disjoint": Table(
        "CIFAR-10 (5,085 training images), five clients with two classes each, ViT-tiny at 112 px",
        ("experiment=cifar10_disjoint", "data=imagefolder"),
        "photos",
        data="cifar10",
        backbone=True,
    ),
    "cifar10_100_clients": Table(
        "CIFAR-10 (5,085 training images), a tenth of 100 clients a round, label Dirichlet 0.1, ViT-tiny at 112 px",
        ("experiment=cifar10_100_clients", "data=imagefolder"),
        "photos",
        data="cifar10",
        backbone=True,
    ),
}
