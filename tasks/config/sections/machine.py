"""The sections `profile`, `store`, `runner` and `tracking`: devices, storage, workers and MLflow."""

from typing import Annotated, Literal

from pydantic import Field

from tasks.config.sections.section import Lists, Positive, Section


class Profile(Lists):
    """Measurement of a device (flows.profile_device)."""

    tokens: list[Positive] = Field(min_length=1, description="tokens per call: 1 for decoding, hundreds for prompts")
    repetitions: Annotated[int, Field(ge=2)] = Field(default=20, description="measurements per median")
    ranks: Annotated[int, Field(ge=2)] = Field(default=8, description="ranks to time per shape, up to break-even")
    threads: Positive | None = Field(default=None, description="threads of the CPU; null: as many as torch uses")
    output: str = Field(
        default="results/latency.json", description="file of the profile, below the folder of params.yaml"
    )


class StoreSection(Section):
    """The artifact store."""

    path: str = Field(description="folder of the artifact store")
    lock_timeout: Annotated[float, Field(gt=0)] = Field(default=3600.0, description="seconds to wait for another run")
    signing_key: str | None = Field(
        default=None,
        description="OpenSSH key with which every run signs its record; null: sign by hand (flows.lineage sign)",
    )
    remote: str | None = Field(
        default=None,
        description="URL of a store shared by all machines, s3://bucket/folder or another URL of fsspec; null: only the folder",
        pattern=r"^[a-z0-9+]+://.+",
    )


class RunnerSection(Section):
    """Where parallel steps run; results do not depend on it."""

    kind: Literal["threads", "dask", "ray"] = Field(
        default="threads",
        description="threads, or worker processes of Dask or Ray on this machine or others",
    )
    workers: Literal["auto"] | Positive = Field(
        default="auto", description="steps that run at a time; auto: one per GPU, at least 2"
    )
    address: str | None = Field(
        default=None,
        description="address of an existing Dask scheduler or Ray cluster; null: worker processes on this machine",
    )


class Tracking(Section):
    """Where runs are recorded in MLflow."""

    uri: str = Field(description="MLflow's tracking URI")
    experiment: str = Field(description="MLflow's experiment")
    unreachable: Literal["stop", "buffer"] = Field(
        default="stop",
        description="if the server does not answer: stop at the start, or record below store.path (buffer) and upload later",
    )
