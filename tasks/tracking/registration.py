"""A checkpoint in MLflow's registry: the folder as it is, no pickled flavour, found by aliases.

A run that was told to (`registry.model`) keeps its checkpoint among its files and says so in tags; from these alone the version is made, by
the run itself or by whoever copies it to the server. It gets the alias `candidate`; `champion` is given by a gate
(tasks/tracking/promotion.py).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

FOLDER = "checkpoint"
"""Where a run keeps its checkpoint, among its files."""
MODEL, DIGEST, RECORD = "registry.model", "registry.checkpoint", "run.record"
"""Tags of a run: the registered model, the digest of the checkpoint, that of the record of the run."""
CANDIDATE, CHAMPION = "candidate", "champion"


def register(client: "MlflowClient", run: str) -> "ModelVersion | None":
    """The version that a run's tags ask for, made if there is none yet; a run that asks for none has none."""
    from mlflow.exceptions import MlflowException

    found = client.get_run(run)
    name = found.data.tags.get(MODEL)
    if name is None:
        return None
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if versions := client.search_model_versions(f"run_id = '{run}'"):
        return versions[0]
    tags = {key: found.data.tags[key] for key in (DIGEST, RECORD) if key in found.data.tags}
    version = client.create_model_version(name, f"{found.info.artifact_uri}/{FOLDER}", run, tags)
    set_alias(client, name, CANDIDATE, version.version)
    return version


def set_alias(client: "MlflowClient", model: str, alias: str, version: str) -> None:
    """Point an alias of a registered model at a version.

    MLflow inserts an alias that it did not find. Of two writers that set a new one at once, its database refuses the second; by then the
    alias is there, and setting it again updates it.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.set_registered_model_alias(model, alias, version)
    except MlflowException as error:
        if "IntegrityError" not in str(error):
            raise
        client.set_registered_model_alias(model, alias, version)
