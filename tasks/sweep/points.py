"""Points of a sweep: every combination of its lists, with a name and the arguments of its steps; and the outcome of a point."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from mgaa.errors import UsageError
from tasks.artifacts.specs import MethodSpec
from tasks.cache.artifact import Artifact
from tasks.config.method_options import SECTIONS
from tasks.config.sections.methods import Factors, Map, Ranks
from tasks.config.sections.section import Method
from tasks.config.sections.sweep import Source, Sweep
from tasks.planning.recipes import UNIFORM, Recipe, recipe_of

Entry = TypeVar("Entry", bound=Source | Method)


@dataclass(frozen=True)
class Point:
    """One compressed model of a sweep.

    Attributes:
        name: unique among all points.
        allocation: which levels are not uniform: `uniform`, `level1`, `level2` or `both`; with their names if a list has several.
    """

    name: str
    allocation: str
    backbone: Source
    factors: Factors
    ratios: Map
    ranks: Ranks
    compression: float

    @property
    def recipe(self) -> Recipe:
        """Plain arguments of its steps."""
        return recipe_of(self.compression, self.ratios, self.ranks)

    @property
    def factorizer(self) -> MethodSpec:
        """Factorizer with its options."""
        return MethodSpec(self.factors.method, self.factors.options)

    @property
    def is_uniform(self) -> bool:
        """Tell whether both levels are uniform."""
        return self.ratios.method == self.ranks.method == UNIFORM

    @property
    def setting(self) -> tuple[str, str, float]:
        """Settings that a point shares with its reference: the factorizer and the compression."""
        return self.factors.method, options_text(self.factors), self.compression

    def coordinates(self) -> dict[str, Any]:
        """Coordinates of the point as the columns of a table: methods by name, their options as text."""
        return {
            "backbone": backbone_place(self.backbone),
            **{
                f"{section}{suffix}": value
                for section, method in (("factors", self.factors), ("ratios", self.ratios), ("ranks", self.ranks))
                for suffix, value in (("", method.method), ("_options", options_text(method)))
            },
            "allocation": self.allocation,
            "compression": self.compression,
        }


@dataclass(frozen=True)
class PointMeasurement:
    """Artifacts of a measured point, and its duration in seconds."""

    ratios: Artifact
    ranks: Artifact
    measurement: Artifact
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """A completed point, either measured or failed with an error."""

    point: Point
    measured: PointMeasurement | None
    error: BaseException | None


def sweep_points(sweep: Sweep) -> list[Point]:
    """List all points, grouped by backbone and factorizer.

    Raises:
        UsageError: ranks are read from a file, together with ratios that have no effect on them.
    """
    for ratios, ranks in product(sweep.ratios, sweep.ranks):
        if ranks.method == "file" and ratios.method != "file":
            raise UsageError(
                f"sweep.ratios has {ratios.method}, which has no effect on sweep.ranks with the method file, whose ranks are those of "
                "the file: give ranks from files a sweep of their own, with ratios from files"
            )
    found = []
    for (where, backbone), (how, factors), target, level1, level2 in product(
        name_entries(sweep.backbone),
        name_entries(sweep.factors),
        sweep.compression,
        name_entries(sweep.ratios),
        name_entries(sweep.ranks),
    ):
        words = [how, level1[0], level2[0], f"{target:g}"]
        name = "-".join(words if len(sweep.backbone) == 1 else [where, *words])
        found.append(
            Point(name, allocation_name(sweep, level1, level2), backbone, factors, level1[1], level2[1], target)
        )
    return found


def allocation_name(sweep: Sweep, level1: tuple[str, Map], level2: tuple[str, Ranks]) -> str:
    """Name of a pair of levels; includes the name of a level if its list has another one of the same kind."""
    (_, ratios), (_, ranks) = level1, level2
    kinds = {(False, False): "uniform", (True, False): "level1", (False, True): "level2", (True, True): "both"}
    words = [kinds[ratios.method != UNIFORM, ranks.method != UNIFORM]]
    for (name, entry), entries in ((level1, sweep.ratios), (level2, sweep.ranks)):
        alike = [each for each in entries if (each.method == UNIFORM) == (entry.method == UNIFORM)]
        words += [name] if len(alike) > 1 else []
    return " ".join(words)


def name_entries(entries: Sequence[Entry]) -> list[tuple[str, Entry]]:
    """Entries with short unique names: the name of a method, with its options if another entry has the same."""
    short = [Path(each.source).name if isinstance(each, Source) else each.method for each in entries]
    names = [name if short.count(name) == 1 else full_name(each) for name, each in zip(short, entries, strict=True)]
    return list(zip(names, entries, strict=True))


def full_name(entry: Source | Method) -> str:
    """Name of an entry with everything that distinguishes it."""
    if isinstance(entry, Source):
        return backbone_place(entry)
    return f"{entry.method}({options_text(entry)})" if options_text(entry) else entry.method


def backbone_place(backbone: Source) -> str:
    """Folder of a backbone, or its id on the Hub with the commit."""
    return backbone.source if backbone.revision is None else f"{backbone.source}@{backbone.revision}"


def options_text(method: Method) -> str:
    """Options of a method as text, together with the section's common options that are set."""
    shared = {
        name: getattr(method, name, None) for name in ("band", "residual", *sorted(SECTIONS["ranks"] - {"method"}))
    }
    defaults = (None, True, "auto", "parameters", "metric")
    given = {**method.options, **{name: value for name, value in shared.items() if value not in defaults}}
    return " ".join(f"{name}={value}" for name, value in given.items())
