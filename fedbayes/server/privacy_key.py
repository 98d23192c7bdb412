"""The privacy key: keys random numbers that no client may repeat where clients know the run's seed.

Every process of a Flower App has the run's configuration, and the seed with it. The key stands in no configuration,
checkpoint or log. A key of one's own makes such a run repeatable, and is as good as its length.
"""

import os
import secrets

from fedbayes.errors import ConfigError

VARIABLE = "FEDBAYES_PRIVACY_SECRET"
SHORTEST = 32
"""Characters of a key: 128 bits of hexadecimal digits."""


def privacy_key() -> str:
    """Return the key in the environment, or without one a new one from the operating system.

    Raises:
        ConfigError: if it is too short; its value is not said.
    """
    key = os.environ.get(VARIABLE)
    if key is None:
        return secrets.token_hex(32)
    if len(key) < SHORTEST:
        raise ConfigError(
            f"the environment variable {VARIABLE} has {len(key)} characters, which can be guessed; set it to "
            f"{SHORTEST} random ones or more, e.g. by `openssl rand -hex 32`, or leave it out."
        )
    return key
