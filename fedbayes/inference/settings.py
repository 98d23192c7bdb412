"""The numbers of variational inference that a user chooses."""

from typing import final

from fedbayes.errors import ConfigError, require_choice, require_number, require_whole

REVERSE = ("none", "gaussian")


@final
class InferenceSettings:
    """How the posterior over prompts is trained and used.

    Args:
        train_samples: J, draws of prompts per image in a training step.
        num_extra: K, fresh draws of the mixing variable in the bound; 0 is the loosest.
        predict_samples: S, draws of prompts averaged in a prediction.
        beta: weight of the KL; a label is worth at most log C nats and a wide code costs far more.
        beta_warmup: rounds in which the weight rises linearly to beta; 0 for none.
        reverse: model of the noise given code and image: `none` is plain SIVI, `gaussian` trains one along
            (`fedbayes.inference.reverse`); only a semi-implicit posterior has noise to model.

    Raises:
        ConfigError: if a value is out of range, or a reverse model has no KL to learn from.
    """

    def __init__(
        self, *, train_samples: int, num_extra: int, predict_samples: int, beta: float, beta_warmup: int, reverse: str
    ) -> None:
        self.train_samples = require_whole("inference.train_samples", train_samples, 1)
        self.num_extra = require_whole("inference.num_extra", num_extra, 0)
        self.predict_samples = require_whole("inference.predict_samples", predict_samples, 1)
        self.beta = require_number("inference.beta", beta, 0)
        self.beta_warmup = require_whole("inference.beta_warmup", beta_warmup, 0)
        self.reverse = require_choice("inference.reverse", reverse, REVERSE)
        if self.beta == 0 and self.reverse != "none":
            raise ConfigError(
                f"inference.reverse={reverse} learns from the KL, which inference.beta=0 leaves out; set "
                "inference.reverse=none or a beta above 0."
            )

    def beta_at(self, server_round: int) -> float:
        """Return the KL weight in a round, counted from 1."""
        return self.beta if self.beta_warmup == 0 else self.beta * min(1.0, server_round / self.beta_warmup)
