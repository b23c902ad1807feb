"""The runs that MLflow has, as tables and figures read them. What a run tells it is in tracking.py."""

from __future__ import annotations

import ast
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from .config import RunConfig
from .mlflow_store import EXPERIMENT, TrackingError, absolute, calls, client
from .results import Result

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FINISHED_RUNS = "attributes.status = 'FINISHED' and tags.`lr_relax.kind` = 'run'"
PAGE = 1000
LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """A finished run in MLflow."""

    run_id: str
    key: str
    config: RunConfig
    metrics: dict[str, float]
    tags: dict[str, str]


def records(uri: str, experiment: str = EXPERIMENT) -> list[Record]:
    """All finished runs of the experiment, newest first; of those with equal keys, the newest alone.

    Runs of other versions, whose options are not those of `RunConfig`, are left out with a warning.
    """
    uri = absolute(uri)
    newest: dict[str, Record] = {}
    foreign: dict[str, str] = {}
    with calls(uri):
        mlflow = client(uri)
        found = mlflow.get_experiment_by_name(experiment)
        if found is None:
            raise TrackingError(f"there is no experiment {experiment}")
        for run in _pages(mlflow, found.experiment_id):
            try:
                record = _record(run)
            except (ValueError, TypeError) as error:
                foreign[run.info.run_id] = str(error)
                continue
            newest.setdefault(record.key, record)
    for run_id, reason in foreign.items():
        LOGGER.warning("the run %s is none of this version's and left out: %s", run_id, reason)
    return list(newest.values())


def result(uri: str, record: Record) -> Result:
    """All that is known of a run, predictions in bins and history included: its artifact ``result.json``."""
    uri = absolute(uri)
    with calls(uri), TemporaryDirectory() as folder:
        path = client(uri).download_artifacts(record.run_id, "result.json", folder)
        try:
            return Result.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TrackingError(f"the run {record.run_id} has no result.json of this version") from error


def _pages(mlflow: MlflowClient, experiment_id: str) -> Iterator[Run]:
    token = None
    while True:
        page = mlflow.search_runs(
            [experiment_id],
            FINISHED_RUNS,
            max_results=PAGE,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def _record(run: Run) -> Record:
    """MLflow's parameters are texts; those that are no fields of the configuration came later, such as T."""
    names = {field.name for field in fields(RunConfig)}
    values = {name: _value(text) for name, text in run.data.params.items() if name in names}
    config = RunConfig.from_dict(values)
    key = run.data.tags.get("lr_relax.key", config.key)
    return Record(run.info.run_id, key, config, dict(run.data.metrics), dict(run.data.tags))


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # a name
