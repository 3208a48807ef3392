"""Registration of the winner in MLflow's model registry, as a traced graph without pickle."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

from autotl.tracking.flat import flat
from autotl.tracking.folder import StudyFolder
from autotl.tracking.mlflow.server import Server, key
from autotl.tracking.result import Result

if TYPE_CHECKING:
    from autotl.export.bundle import Bundle

ALIAS = "champion"
"""The alias of the model version that its study found last."""
PLAN = "autotl.plan"


def register(
    server: Server, run: str, folder: StudyFolder, result: Result, words: Sequence[str], model: Callable[[], "Bundle"]
) -> None:
    """Give the winner the alias `champion`, as a new version unless it is registered already.

    `run` is the run of the study, `words` the description of the version.
    """
    client, name, made = server.client, server.name, result.made
    versions = client.search_model_versions(f"name = '{name}'")
    known = [version for version in versions if version.tags.get(PLAN) == made.hash]
    if not known:
        uri = _log(server, run, folder, result, model())
        metric = result.test.metric
        tags = {PLAN: made.hash, f"test.{metric}": f"{result.test.value:.4f}"}
        tags |= {name: ", ".join(getattr(plan, name) for plan in made.members) for name in ("backbone", "cut")}
        tags |= {"strategy": result.best.strategy}
        known = [mlflow.register_model(uri, name, tags=tags)]
        words = [*words, f"`mlflow.pytorch.load_model('models:/{name}@{ALIAS}')`"]
        client.update_model_version(name, known[0].version, description="\n\n".join(words))
    if client.get_registered_model(name).aliases.get(ALIAS) != str(known[0].version):
        client.set_registered_model_alias(name, ALIAS, known[0].version)


def _log(server: Server, run: str, folder: StudyFolder, result: Result, bundle: "Bundle") -> str:
    """Log the model to a run, and return its URI."""
    from autotl.export.graph import examples, input_names

    images = [each.numpy() for each in examples(bundle.graph)]
    names = input_names(bundle.graph.inputs) if len(images) > 1 else [None]
    specs: list[ColSpec | TensorSpec] = [
        TensorSpec(each.dtype, (-1, *each.shape[1:]), name) for each, name in zip(images, names, strict=True)
    ]
    params = {"strategy": result.best.strategy, **flat(result.final)}
    mlflow.set_tracking_uri(server.uri)
    mlflow.set_registry_uri(server.uri)
    with mlflow.start_run(run_id=run):
        logged = mlflow.pytorch.log_model(
            bundle.graph.cpu(),
            name=result.study,
            serialization_format="pt2",
            input_example=images if len(images) > 1 else images[0],
            signature=ModelSignature(
                inputs=Schema(specs),
                outputs=Schema([TensorSpec(np.dtype("float32"), (-1, len(bundle.classes)))]),
            ),
            extra_files=[str(folder.bundle / name) for name in ("preprocessing.json", "classes.json", "LICENSE")],
            pip_requirements=[f"torch=={result.final.requires['torch']}"],
            metadata={"classes": list(bundle.classes), "study": result.study},
            params={key(name): str(value) for name, value in params.items()},
        )
    return str(logged.model_uri)
