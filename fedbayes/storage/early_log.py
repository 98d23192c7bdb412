"""What is logged before a run has a directory, kept for its `run.log`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final


@final
class _Collector(logging.Handler):
    """Collects records; shows warnings as Python does where no other handler is set."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        is_alone = logging.getLogger("fedbayes").handlers == [self] and not logging.getLogger().handlers
        if is_alone and logging.lastResort is not None and record.levelno >= logging.lastResort.level:
            logging.lastResort.handle(record)


@contextmanager
def collected() -> Iterator[list[logging.LogRecord]]:
    """Collect the records of the logger "fedbayes" while the block runs."""
    logger, collector = logging.getLogger("fedbayes"), _Collector()
    logger.addHandler(collector)
    try:
        yield collector.records
    finally:
        logger.removeHandler(collector)
