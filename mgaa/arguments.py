"""Arguments of the one-call API, parsed for the stages: names and options of methods, checked before anything is computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from transformers import PreTrainedModel

from mgaa.allocation.channels import Pruning
from mgaa.allocation.latency import COMMAND, Latency, load_latency
from mgaa.anchoring.fitting import Anchoring
from mgaa.anchoring.refinement import Refinement
from mgaa.errors import UsageError
from mgaa.levels import Chosen, Target
from mgaa.methods import available_methods, load_method, method_traits

Method = str | Mapping[str, Any]
"""A method by name, or a mapping of `method` and its options: `{"method": "softmax", "temperature": 0.1}`."""


RATIOS: Method = {"method": "softmax", "temperature": 0.1, "band": "auto"}
"""Defaults of level 1, chosen on validation text of five backbones (docs/log.md)."""

LORAP: dict[str, Any] = {
    "factors": "awsvd",
    "ratios": "uniform",
    "ranks": {"method": "lorap", "split": 3.0, "multiple": 1},
    "channels": {"method": "weighted", "keep_least": 0.01, "multiple": 1},
    "inputs": "compressed",
}
"""LoRAP (arXiv 2404.09695) as arguments of `compress_`: `compress_(model, tokens, compression=0.2, **LORAP)`."""


LOSS: dict[str, Any] = {"factors": "kronecker", "ratios": "uniform", "ranks": "loss", "anchor": "stream"}
"""Our method with the least loss, as arguments of `compress_`: errors weighted by their effect on the loss, ranks chosen by that effect
over the whole model, and factors fitted to the dense model block by block. Chosen on validation text of four backbones (docs/log.md)."""


LATENCY = ("objective", "profile", "tokens", "device")
"""Options of every rule of level 2 about latency."""

RANKS = ("multiple", "spectrum", *LATENCY)
"""Options of every rule of level 2."""


@dataclass(frozen=True)
class Methods:
    """The methods of all stages, each with its options.

    Attributes:
        factors: the factorizer.
        ratios, ranks: the map of level 1, and the rule of level 2.
        residual: whether level 1 compares the stream before and after a sublayer; otherwise the stream before it and what it adds.
        anchoring: settings of the fit to the dense model; `None` where factors are slices of decompositions on dense inputs.
        refinement: settings of the joint tuning of a block's factors; `None` for no tuning.
    """

    factors: Chosen
    ratios: Chosen
    ranks: Chosen
    residual: bool = True
    anchoring: Anchoring | None = None
    refinement: Refinement | None = None

    @property
    def levels(self) -> dict[str, Chosen]:
        """Arguments of `mgaa.levels.preflight`."""
        return {"factors": self.factors, "ratios": self.ratios, "ranks": self.ranks}

    @property
    def gradients(self) -> bool:
        """Whether the factorizer needs the second moments of output gradients."""
        return method_traits("factors", self.factors[0]).gradients


def methods_of(
    factors: Method, ratios: Method | None, ranks: Method, anchor: Method, refinement: Method = "none"
) -> Methods:
    """Parse the methods of all stages.

    Raises:
        UsageError: a method or an option is unknown, an option is missing or out of range, or blocks are to be tuned without an anchor.
    """
    factorizer, factor_options, _ = _parse_method("factors", factors)
    level2, rank_options, _ = _parse_method("ranks", ranks, shared=RANKS)
    given = _ratios(ratios, level2, rank_options)
    level1, ratio_options, shared = _parse_method("ratios", given, shared=("band", "residual"))
    if not isinstance(residual := shared.get("residual", True), bool):
        raise UsageError(f"ratios.residual is {residual!r}, expected true or false")
    return Methods(
        (factorizer, factor_options),
        (level1, {**ratio_options, "band": shared.get("band")}),
        (level2, rank_options),
        residual,
        _anchoring(anchor),
        _refinement(refinement, anchor),
    )


def target_of(compression: float, ranks: Method, channels: Method, model: PreTrainedModel) -> Target:
    """Parse the target of both levels.

    Raises:
        UsageError: an option is unknown or out of range.
        InputError: a profile is missing or damaged.
    """
    shared = _parse_method("ranks", ranks, shared=RANKS)[2]
    multiple, spectrum = shared.pop("multiple", None), shared.pop("spectrum", "metric")
    latency = _latency(shared, dtype=str(model.dtype).removeprefix("torch."))
    return Target(compression, "auto" if multiple is None else multiple, _pruning(channels), latency, spectrum)


def _pruning(method: Method) -> Pruning | None:
    """Parse the settings of FFN pruning, `None` for no pruning."""
    name, options = _name_and_options("channels", method, ("none", "weighted"))
    if name == "none":
        return None
    return Pruning(**_check_options("channels", options, Pruning))


def _anchoring(method: Method) -> Anchoring | None:
    """Parse the settings of the fit to the dense model, `None` for no fit."""
    name, options = _name_and_options("anchor", method, ("none", "outputs", "stream"))
    if name == "none":
        return None
    return Anchoring(stream=name == "stream", **_check_options("anchor", options, Anchoring, apart=("stream",)))


def _refinement(method: Method, anchor: Method) -> Refinement | None:
    """Parse the settings of block tuning, `None` for no tuning."""
    name, options = _name_and_options("refinement", method, ("none", "adam"))
    if name == "none":
        return None
    if _anchoring(anchor) is None:
        raise UsageError(
            f"refinement is {method!r}, which tunes blocks whose factors are fitted to the dense model, but anchor is {anchor!r}: "
            "set anchor.method=stream, or refinement.method=none"
        )
    return Refinement(**_check_options("refinement", options, Refinement))


def _name_and_options(section: str, method: Method, names: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Split a method into its name, one of `names`, and its options."""
    options: dict[str, Any] = {"method": method} if isinstance(method, str) else dict(method)
    name = options.pop("method", None)
    if name not in names:
        raise UsageError(
            f"{section} is {method!r}, expected {', '.join(map(repr, names))}, or a mapping with the key 'method'"
        )
    return name, options


def _check_options(
    section: str, options: dict[str, Any], settings: type[Any], apart: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the options if all of them are fields of the settings."""
    names = [field.name for field in fields(settings) if field.name not in apart]
    if unknown := sorted(set(options) - set(names)):
        raise UsageError(f"{section}.{unknown[0]} is not an option; it takes {', '.join(names)}")
    return options


def _latency(options: Mapping[str, Any], *, dtype: str) -> Latency | None:
    """Load the objective from the options that all rules share, `None` for parameters."""
    objective = options.get("objective", "parameters")
    if objective not in ("parameters", "latency"):
        raise UsageError(f"ranks.objective is {objective!r}, expected 'parameters' or 'latency'")
    chosen = {name: value for name, value in options.items() if name != "objective"}
    if objective == "latency" and chosen.get("profile") is None:
        raise UsageError(f"ranks.profile is missing: ranks.objective=latency needs what `{COMMAND}` writes")
    if objective == "latency":
        return load_latency(dtype=dtype, **chosen)
    if idle := sorted(chosen):
        raise UsageError(f"ranks.{idle[0]} has no effect without ranks.objective=latency: leave it out")
    return None


def _ratios(method: Method | None, level2: str, options: Mapping[str, Any]) -> Method:
    """Return level 1 as given, or its default; where ranks come from a file, only the ratios of that file are allowed."""
    if level2 != "file":
        return RATIOS if method is None else method
    if method is not None and (method if isinstance(method, str) else method.get("method")) != "file":
        raise UsageError(
            f"ratios is {method!r}, which has no effect on ranks that are read from a file: leave it out, or take another ranks.method"
        )
    return {"method": "file", **options} if method is None else method


def _parse_method(
    section: str, method: Method, shared: Sequence[str] = ()
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Split a method into its name, its own options, and those that all methods of the section share, all checked."""
    options: dict[str, Any] = {"method": method} if isinstance(method, str) else dict(method)
    if "method" not in options:
        raise UsageError(
            f"{section} is {method!r}, expected a name or a mapping with the key 'method'; methods are "
            f"{', '.join(available_methods(section))}"
        )
    name, common = options.pop("method"), {key: options.pop(key) for key in shared if key in options}
    load_method(section, name, options)
    return name, options, common
