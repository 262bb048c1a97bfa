"""A checkpoint in MLflow's registry: the plain folder, without a pickled flavour, found by aliases.

A run with a `registry.model` keeps its checkpoint among its files and names it in tags; the version is made from these alone, by
the run itself or by whatever copies it to the server. It gets the alias `candidate`; the gate gives `champion`
(tasks/tracking/promotion.py).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

FOLDER = "checkpoint"
"""Folder of the checkpoint among the files of a run."""
MODEL, DIGEST, RECORD = "registry.model", "registry.checkpoint", "run.record"
"""Tags of a run: the registered model, the digest of the checkpoint, the digest of the run's record."""
CANDIDATE, CHAMPION = "candidate", "champion"


def register(client: "MlflowClient", run: str) -> "ModelVersion | None":
    """Register the version that the tags of a run request, unless it exists; returns it, or None if the tags request none."""
    from mlflow.exceptions import MlflowException

    run_entity = client.get_run(run)
    name = run_entity.data.tags.get(MODEL)
    if name is None:
        return None
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if versions := client.search_model_versions(f"run_id = '{run}'"):
        return versions[0]
    tags = {key: run_entity.data.tags[key] for key in (DIGEST, RECORD) if key in run_entity.data.tags}
    version = client.create_model_version(name, f"{run_entity.info.artifact_uri}/{FOLDER}", run, tags)
    set_alias(client, name, CANDIDATE, version.version)
    return version


def set_alias(client: "MlflowClient", model: str, alias: str, version: str) -> None:
    """Point an alias of a registered model at a version.

    MLflow inserts an alias that it does not find. Of two writers that set a new one at once, its database refuses the second; by then the
    alias exists, and setting it again updates it.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.set_registered_model_alias(model, alias, version)
    except MlflowException as error:
        if "IntegrityError" not in str(error):
            raise
        client.set_registered_model_alias(model, alias, version)
