"""Names that modules of several layers share."""

CONFIG = "config.yaml"
"""A run's resolved configuration, in its directory."""

CHECKPOINTS = "checkpoint"
"""The folder of a run's checkpoints, in its directory."""

SUBJECT = ("method", "data", "partition", "backbone")
"""Groups whose choice says what a run is about."""
