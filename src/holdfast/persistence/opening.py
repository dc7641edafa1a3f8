"""What a driver finds, and leaves on record, when it opens a run."""

from __future__ import annotations

import getpass
import logging
import os
import secrets
import socket
from collections.abc import Mapping

import msgspec

from holdfast.config import CheckpointConfig
from holdfast.errors import StoreExistsError
from holdfast.persistence import catalog as catalogs
from holdfast.persistence import layout, metrics_log
from holdfast.persistence.lease import Survey, utc_now
from holdfast.persistence.retention import RetentionPolicy
from holdfast.records import RunRecord
from holdfast.stores.base import Store

_log = logging.getLogger("holdfast")
_encoder = msgspec.json.Encoder()
_KEEP = "checkpoint_config.num_to_keep"
_ATTRIBUTE = "checkpoint_config.checkpoint_score_attribute"
_ORDER = "checkpoint_config.checkpoint_score_order"


def survey(store: Store) -> Survey:
    """Looks at a run that is about to be driven: what is valid, and which numbers are still free."""
    found = catalogs.load(store)
    for problem in found.problems:
        _log.warning("%s", problem)
    records = found.epochs.values()
    return Survey(
        catalog=found,
        first_attempt=max(
            [
                1 + found.highest_attempt,
                1 + metrics_log.highest_attempt(store),
                1 + _highest_logged_attempt(store),
                *(each.first_attempt for each in records),
            ]
        ),
        first_report=max(
            [
                1 + found.highest_report,
                1 + metrics_log.highest_report(store),
                1 + _highest_pending_report(store),
                *(each.first_report for each in records),
            ]
        ),
    )


def _highest_pending_report(store: Store) -> int:
    """Of those whose checkpoint an earlier driver had begun to store: a request of its may still be on its way there."""
    names = (entry.key.rpartition("/")[2].removesuffix(".json") for entry in store.list(layout.PENDING))
    return max((number for name in names if (number := layout.parse_checkpoint(name)) is not None), default=0)


def _highest_logged_attempt(store: Store) -> int:
    """Of those whose output was kept: one that reported nothing is an attempt too, and its log its own."""
    names = (entry.key.rpartition("/")[2] for entry in store.list(layout.LOGS))
    return max((number for name in names if (number := layout.parse_log_directory(name)) is not None), default=0)


def ensure_run_record(store: Store, name: str, configuration: Mapping[str, str]) -> str:
    """Writes `run.json` unless it is there; gives the run's id."""
    record = RunRecord(
        id=secrets.token_hex(16),
        name=name,
        created=utc_now(),
        holdfast_version=_version(),
        configuration=dict(configuration),
    )
    try:
        # Dying on the next line leaves a run that is named and empty, or the one that there was.
        store.create(layout.RUN_RECORD, _encoder.encode(record))
    except StoreExistsError:
        found = catalogs.read_run_record(store)
        if found is not None:
            return found.id
        _log.warning("%s/%s cannot be read; it is written anew", store.url, layout.RUN_RECORD)
        # Dying on the next line leaves the unreadable record, or the new one; a run works with either.
        store.write(layout.RUN_RECORD, _encoder.encode(record))
    return record.id


def describe_policy(config: CheckpointConfig) -> dict[str, str]:
    """What decides about checkpoints, as text for the run's records."""
    described: dict[str, str] = {_ORDER: config.checkpoint_score_order}
    if config.num_to_keep is not None:
        described[_KEEP] = str(config.num_to_keep)
    if config.checkpoint_score_attribute is not None:
        described[_ATTRIBUTE] = config.checkpoint_score_attribute
    return described


def read_policy(configuration: Mapping[str, str]) -> RetentionPolicy:
    """The policy that `describe_policy` described; the default for what is missing or not understood."""
    keep, order = configuration.get(_KEEP, ""), configuration.get(_ORDER, "max")
    return RetentionPolicy(
        num_to_keep=int(keep) if keep.isdecimal() and int(keep) > 0 else None,
        attribute=configuration.get(_ATTRIBUTE),
        order=order if order in ("max", "min") else "max",
    )


def this_process() -> str:
    """This process as a person wants to read it."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        # A container may run as a number that has no name.
        user = f"user {os.getuid()}"
    return f"{user} on {socket.gethostname()}, process {os.getpid()}"


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and needed once in a run's life

    try:
        return version("holdfast")
    except PackageNotFoundError:
        return "unknown"
