"""Write the emulator of a configuration to a file, for the SuperNodes of a Flower App; nothing is trained.

python -m fedbayes.commands.emulator emulator=gradot owner.emulator=emulator.safetensors data=... backbone=...
"""

import sys
from collections.abc import Sequence

from fedbayes import build
from fedbayes.config.compose import compose, resolved
from fedbayes.errors import ConfigError, FedbayesError
from fedbayes.parts.offsite import store


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file and print its name.

    Args:
        argv: overrides; those of the process's arguments by default.

    Returns:
        0, or 2 with one line for what a user can mend.
    """
    try:
        cfg = compose(sys.argv[1:] if argv is None else argv)
        resolved(cfg)
        if cfg.names.emulator == "none" or cfg.owner.emulator is None:
            raise ConfigError(f"emulator={cfg.names.emulator} owner.emulator={cfg.owner.emulator}: set both.")
        parts = build.assemble(cfg, build.NoEngine())
        assert parts.emulator is not None, "an emulator was chosen"
        store(cfg, parts.emulator.emulator, parts.model.backbone)
    except FedbayesError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(f"{cfg.owner.emulator}: {parts.emulator.emulator.bytes:,} bytes of numbers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
