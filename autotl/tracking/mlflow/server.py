"""One study's experiment and runs on an MLflow server or store, written within MLflow's limits."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

T = TypeVar("T")

AT_ONCE = {"metrics": 500, "params": 100, "tags": 100}
"""How much MLflow accepts in one request."""


class Server:
    """Every method may raise any exception of MLflow or of the network."""

    def __init__(self, uri: str, name: str) -> None:
        """`name`: the study's, from which the name of its experiment is made."""
        self.uri, self.name = uri, our(name)
        with _alone(uri):
            self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            self.experiment = self.client.get_experiment_by_name(self.name)

    def begin_experiment(self, home: Path, tags: Mapping[str, str]) -> str:
        """The experiment's id; the experiment is created if missing, and restored if deleted.

        Its artifacts are in `home`, unless the server stores them.
        """
        with _alone(self.uri):  # another process may have been faster
            self.experiment = found = self.client.get_experiment_by_name(self.name)
            if found is None:
                served = self.uri.startswith(("http:", "https:", "databricks"))
                place = None if served else (home.resolve() / "mlartifacts" / self.name).as_uri()
                return self.client.create_experiment(self.name, artifact_location=place, tags=dict(tags))
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        for name, value in tags.items():
            if found.tags.get(name) != value:
                self.client.set_experiment_tag(found.experiment_id, name, value)
        return str(found.experiment_id)

    def runs(self, experiment: str, tag: str, value: str) -> list[Run]:
        """Every run of an experiment that has the tag."""
        found: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs(
                [experiment], f"tags.`{tag}` = '{value}'", max_results=1000, page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found

    def log(
        self,
        run: str,
        *,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log to a run, in as many requests as needed."""
        for metric_part in _parts(metrics, AT_ONCE["metrics"]):
            self.client.log_batch(run, metrics=metric_part)
        written = [Param(key(name), str(value)[:6000]) for name, value in (params or {}).items()]
        for param_part in _parts(written, AT_ONCE["params"]):
            self.client.log_batch(run, params=param_part)
        marks = [RunTag(key(name), value[:5000]) for name, value in (tags or {}).items()]
        for tag_part in _parts(marks, AT_ONCE["tags"]):
            self.client.log_batch(run, tags=tag_part)


def our(name: str) -> str:
    """The name of a study's experiment and model: the prefix avoids clashes with others on the server."""
    return f"autotl-{name}"


def key(name: str) -> str:
    """A name without characters that MLflow rejects."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def as_metrics(values: Mapping[str, float], at: float, step: int) -> list[Metric]:
    """`val.accuracy` becomes `val/accuracy`: MLflow groups its charts by the part before a slash."""
    values = {name if "/" in name else name.replace(".", "/", 1): value for name, value in values.items()}
    return [Metric(key(name), float(value), milliseconds(at), step) for name, value in values.items()]


def milliseconds(at: float) -> int:
    """A time in seconds as MLflow's milliseconds."""
    return round(1000 * at)


def _alone(uri: str) -> AbstractContextManager[object]:
    """A lock against several processes creating the same database, which makes MLflow fail."""
    if not uri.startswith("sqlite:///"):
        return nullcontext()
    file = Path(uri.removeprefix("sqlite:///"))
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(file.with_name(f".{file.name}.lock"))


def _parts(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    return (items[start : start + most] for start in range(0, len(items), most))
