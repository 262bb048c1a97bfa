"""The parameters: `params.yaml` and overrides, validated by one model before anything runs (tasks/config/sections/).

Relative paths of the store and of the tracking database are resolved in the checkout: a DVC experiment runs in a temporary copy below
`.dvc/tmp/exps` and must find the results of its checkout.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field, PrivateAttr, ValidationError

from mgaa.errors import UsageError
from mgaa.masking import mask_values
from tasks.config.compatibility import check_compatibility
from tasks.config.messages import explain_errors, suggest
from tasks.config.method_options import SECTIONS, align_sections, select_options
from tasks.config.overrides import merge, parse_overrides, read_parameters
from tasks.config.sections.backbone import Backbone
from tasks.config.sections.data import Data
from tasks.config.sections.evaluation import Evaluation, Output
from tasks.config.sections.machine import Profile, RunnerSection, StoreSection, Tracking
from tasks.config.sections.methods import Anchor, Channels, Factors, Ranks, Ratios, RefinementSection, Statistics
from tasks.config.sections.operation import Schedule
from tasks.config.sections.recovery import Recovery
from tasks.config.sections.registry import Registry
from tasks.config.sections.search import Search, Sensitivity, Study
from tasks.config.sections.section import Section
from tasks.config.sections.sweep import Sweep
from tasks.config.shorthand import expand_choices

TAKEN = ("dense", "uniform", "level1", "level2", "random", "unrecovered")
"""Reserved names of models."""

PUBLISHED = {"length": 2048, "samples": None, "stride": None}
"""The windows of published perplexities: of the section `data.evaluation` where it has a `protocol`."""


class PathSections(Section):
    """Paths from the sections `output`, `store` and `tracking`."""

    if TYPE_CHECKING:
        output: Output
        store: StoreSection
        tracking: Tracking
        registry: Registry
    _folder: Path = PrivateAttr(default_factory=Path.cwd)
    _file: Path = PrivateAttr(default_factory=lambda: Path.cwd() / "params.yaml")

    @property
    def folder(self) -> Path:
        """The folder of `params.yaml`, where results are written; models and data are relative to the working folder."""
        return self._folder

    @property
    def file(self) -> Path:
        """The file of the parameters."""
        return self._file

    @property
    def results(self) -> Path:
        """The folder of metrics, allocations, figures and plots."""
        return self._folder / self.output.results

    @property
    def store_path(self) -> Path:
        """The store; inside a DVC experiment, that of the checkout."""
        return (checkout_of(self._folder) / Path(self.store.path).expanduser()).resolve()

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking URI; a relative SQLite file lies in the checkout."""
        prefix = "sqlite:///"
        if not self.tracking.uri.startswith(prefix):
            return self.tracking.uri
        return f"{prefix}{(checkout_of(self._folder) / self.tracking.uri.removeprefix(prefix)).resolve()}"


class Operation(PathSections):
    """The sections for commands that compute nothing: where results are and how they are kept."""

    model_config = ConfigDict(extra="ignore")

    output: Output
    store: StoreSection
    tracking: Tracking
    registry: Registry


class Parameters(PathSections):
    """All parameters."""

    case: str = Field(description="what is compressed, and on which data: one of `cases`")
    cases: dict[str, dict[str, Any] | None] = Field(
        exclude=True, description="cases by name: values that override those of the sections"
    )
    method: str = Field(description="method of the run: one of `methods`")
    methods: dict[str, dict[str, Any] | None] = Field(
        exclude=True, description="methods by name: values that override those of the sections"
    )
    backbone: Backbone
    data: Data
    statistics: Statistics
    factors: Factors
    ratios: Ratios
    ranks: Ranks
    anchor: Anchor
    refinement: RefinementSection
    channels: Channels
    search: Search
    recovery: Recovery
    evaluation: Evaluation
    output: Output
    sweep: Sweep
    study: Study
    sensitivity: Sensitivity
    profile: Profile
    runner: RunnerSection
    store: StoreSection
    tracking: Tracking
    registry: Registry
    schedule: Schedule

    def flat(self) -> dict[str, Any]:
        """Every value by its dotted key, as on the command line and in records, without secrets."""
        flat: dict[str, Any] = mask_values(dict(flatten(self.model_dump(by_alias=True))))
        return flat


def load_parameters(path: Path, overrides: Sequence[str] = ()) -> Parameters:
    """Read `params.yaml`, apply overrides `section.key=value`, validate everything; raises `UsageError`."""
    given = parse_overrides(overrides, Parameters)
    values = align_sections(apply_presets(read_parameters(path), given), given)
    for section in SECTIONS:
        if isinstance(values.get(section), dict):
            by_hand = given.get(section)
            values[section] = select_options(
                section, values[section], set(by_hand) if isinstance(by_hand, dict) else set()
            )
    values["sweep"] = expand_choices(values)
    try:
        parameters = Parameters.model_validate(values)
    except ValidationError as error:
        raise UsageError(explain_errors(error, Parameters, copies="sweep")) from None
    parameters._folder, parameters._file = path.absolute().parent, path.absolute()
    check_compatibility(parameters.flat())
    return parameters


def load_operation(path: Path, overrides: Sequence[str] = ()) -> Operation:
    """Read only the sections of `Operation`; raises `UsageError`."""
    given = parse_overrides(overrides, Parameters)
    if unknown := sorted(set(given) - set(Parameters.model_fields)):
        raise UsageError(f"There is no section {unknown[0]!r}{suggest(unknown[0], list(Parameters.model_fields))}")
    try:
        found = Operation.model_validate(apply_case(merge(read_parameters(path), given), given))
    except ValidationError as error:
        raise UsageError(explain_errors(error, Operation)) from None
    found._folder = path.absolute().parent
    return found


def apply_presets(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Apply the selected case and method and, below both, the windows of the protocol that the evaluation then has.

    Raises:
        UsageError: an unknown case or method.
    """
    found = apply_method(apply_case(merge(values, given), given), given)
    evaluation = found.get("data", {}).get("evaluation") if isinstance(found.get("data"), dict) else None
    if not isinstance(evaluation, dict) or evaluation.get("protocol") is None:
        return found
    published = merge(values, {"data": {"evaluation": PUBLISHED}})
    return apply_method(apply_case(merge(published, given), given), given)


def apply_case(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Apply the selected case to the sections; overrides in `given` win.

    Raises:
        UsageError: unknown case.
    """
    return apply_preset(
        values, given, "case", "cases", "{backbone: {source: models/demo}}", ("case", "cases", "methods")
    )


def apply_method(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Apply the selected method to the sections; overrides in `given` win.

    Raises:
        UsageError: unknown method, or a reserved name.
    """
    kept = ("case", "cases", "method", "methods")
    found = apply_preset(values, given, "method", "methods", "{factors: {method: afm}}", kept)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", found["method"]) or found["method"] in TAKEN:
        raise UsageError(
            f"method is {found['method']!r}: expected a name of lower-case letters, digits and _ that is none of {', '.join(TAKEN)}, the "
            "names of other models of a run: rename the method under methods."
        )
    return found


def apply_preset(
    values: Mapping[str, Any], given: Mapping[str, Any], key: str, keys: str, example: str, kept: Sequence[str]
) -> dict[str, Any]:
    """Apply the selected entry of `keys` to the sections.

    Args:
        example: an entry, for messages.
        kept: keys that no entry may set.
    """
    entries, chosen = values.get(keys), values.get(key)
    if not isinstance(entries, dict):
        raise UsageError(
            f"{keys} is {entries!r}: expected the {keys} by name, each with its sections (params.yaml of the project has them)."
        )
    if not isinstance(chosen, str) or chosen not in entries:
        raise UsageError(f"{key} is {chosen!r}: expected one of {', '.join(entries)}{suggest(chosen, entries)}")
    stands_for = entries[chosen] if entries[chosen] is not None else {}
    if not isinstance(stands_for, dict) or set(kept) & stands_for.keys():
        raise UsageError(f"{keys}.{chosen} is {stands_for!r}: expected sections with their values, such as {example}.")
    return merge(merge(values, stands_for), given)


def flatten(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; the options of a method are keys of its section, also in the entries of lists."""
    for name, value in values.items():
        if name == "options":
            yield from flatten(value, above)
        elif isinstance(value, Mapping):
            yield from flatten(value, f"{above}{name}.")
        elif isinstance(value, list):
            yield f"{above}{name}", [dict(flatten(each)) if isinstance(each, Mapping) else each for each in value]
        else:
            yield f"{above}{name}", value


def checkout_of(folder: Path) -> Path:
    """The folder itself, or the checkout that a DVC experiment belongs to."""
    parts = folder.absolute().parts
    for index in range(len(parts) - 2):
        if parts[index : index + 3] == (".dvc", "tmp", "exps"):
            return Path(*parts[:index])
    return folder.absolute()
