"""The sections of the machine: how a device is profiled, where results are kept, where steps run, and where runs are recorded."""

from typing import Annotated, Literal

from pydantic import Field

from tasks.config.sections.section import Lists, Positive, Section


class Profile(Lists):
    """How a device is measured (flows.profile_device)."""

    tokens: list[Positive] = Field(min_length=1, description="tokens per call: 1 is decoding, hundreds are a prompt")
    repetitions: Annotated[int, Field(ge=2)] = Field(default=20, description="behind every median")
    ranks: Annotated[int, Field(ge=2)] = Field(
        default=8, description="ranks that are timed per shape, up to break-even"
    )
    threads: Positive | None = Field(default=None, description="of the CPU; null: those of torch")
    output: str = Field(default="results/latency.json", description="the file, below the folder of params.yaml")


class StoreSection(Section):
    """Where results are kept between runs."""

    path: str = Field(description="folder of the artifact store")
    lock_timeout: Annotated[float, Field(gt=0)] = Field(default=3600.0, description="seconds to wait for another run")
    signing_key: str | None = Field(
        default=None,
        description="a key of OpenSSH with which every run signs its record; null: runs are signed by hand (flows.lineage sign)",
    )
    remote: str | None = Field(
        default=None,
        description="URL of the store of all machines, s3://bucket/folder or whatever fsspec knows; null: the folder is all there is",
        pattern=r"^[a-z0-9+]+://.+",
    )


class RunnerSection(Section):
    """Where the steps run that can run side by side; results do not depend on it."""

    kind: Literal["threads", "dask", "ray"] = Field(
        default="threads",
        description="threads of the run, or worker processes of Dask or Ray, on this machine or on others",
    )
    workers: Literal["auto"] | Positive = Field(
        default="auto", description="how many steps run at a time; auto: one per GPU, and 2 where there are fewer"
    )
    address: str | None = Field(
        default=None,
        description="of a Dask scheduler or a Ray cluster that is there; null: worker processes on this machine",
    )


class Tracking(Section):
    """Where MLflow records the run."""

    uri: str = Field(description="MLflow's tracking URI")
    experiment: str = Field(description="MLflow's experiment")
    unreachable: Literal["stop", "buffer"] = Field(
        default="stop",
        description="without the server: stop before work, or record below store.path (buffer) and upload when it is back",
    )
