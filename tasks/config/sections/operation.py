"""The section `schedule`; no result depends on it."""

from datetime import UTC, datetime
from typing import Annotated, Literal, get_args
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator

from tasks.config.sections.section import Section

Scheduled = Literal["compress", "sweep", "evaluate"]
"""The flows that can be scheduled."""


class Crons(Section):
    """Start times of each flow."""

    compress: str = Field(description="minute, hour, day, month, weekday")
    sweep: str = Field(description="minute, hour, day, month, weekday")
    evaluate: str = Field(description="minute, hour, day, month, weekday")

    @field_validator(*get_args(Scheduled))
    @classmethod
    def _cron(cls, value: str) -> str:
        try:
            if len(value.split()) != 5:
                raise CronSimError(f"{len(value.split())} fields")
            CronSim(value, datetime.now(UTC))
        except CronSimError as error:
            raise ValueError(
                f"expected minute, hour, day, month and weekday such as '0 2 * * *', got {value!r} ({error})"
            ) from None
        return value


class Schedule(Section):
    """Scheduled runs (flows.deploy, docs/guides/scheduler.md)."""

    cron: Crons = Field(description="start times of each flow")
    active: list[Scheduled] = Field(description="flows whose schedule is active; all others are started by hand")
    timezone: str = Field(description="time zone of cron, by its IANA name")
    timeout: Annotated[float, Field(gt=0)] | None = Field(
        description="seconds after which a run is stopped; null: never"
    )
    retries: Annotated[int, Field(ge=0, le=10)] = Field(
        description="retries after network, disk or remote store errors"
    )
    delay: Annotated[float, Field(ge=0)] = Field(description="seconds before the first retry, doubled with each one")
    notify: Literal["failures", "all"] = Field(
        description="runs that are posted to the webhook in the environment variable MGAA_WEBHOOK"
    )

    @field_validator("timezone")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            return ZoneInfo(value).key
        except (ValueError, OSError, KeyError):
            raise ValueError(f"expected an IANA name such as Etc/UTC or Europe/Berlin, got {value!r}") from None
