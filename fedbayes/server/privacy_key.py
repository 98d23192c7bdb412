"""The key of draws that no client may repeat, where clients know the run's seed: a secret of the server's process.

Every process of a Flower App is told the run's configuration, and the seed with it. The secret stands in no
configuration, checkpoint or log; an own one makes such a run repeatable, and is as good as its length.
"""

import os
import secrets

from fedbayes.errors import ConfigError

VARIABLE = "FEDBAYES_PRIVACY_SECRET"
SHORTEST = 32
"""Characters of a secret: 128 bits of hexadecimal digits."""


def secret() -> str:
    """The secret in the environment, or without one a new one from the operating system.

    Raises:
        ConfigError: if it is too short; its value is not said.
    """
    given = os.environ.get(VARIABLE)
    if given is None:
        return secrets.token_hex(32)
    if len(given) < SHORTEST:
        raise ConfigError(
            f"the environment variable {VARIABLE} has {len(given)} characters, which can be guessed; set it to "
            f"{SHORTEST} random ones or more, e.g. by `openssl rand -hex 32`, or leave it out."
        )
    return given
