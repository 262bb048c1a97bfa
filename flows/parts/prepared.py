"""The second half of the prelude that flows share: the measurements of the calibration.

inputs -> statistics -> spectra
"""

from collections.abc import Iterable
from dataclasses import dataclass

from prefect import unmapped
from prefect.futures import PrefectFutureList

from flows.parts.calibration import measure_statistics
from flows.parts.inputs import Inputs, factorizer_of
from tasks.artifacts.specs import MethodSpec
from tasks.cache.artifact import Artifact
from tasks.config.sections.methods import Ranks
from tasks.steps.decompose import decompose
from tasks.steps.weigh_plain import weigh_plain


@dataclass(frozen=True, kw_only=True)
class Prepared(Inputs):
    """Inputs with the measurements of their calibration.

    Attributes:
        spectra: the decompositions of all blocks, in which all models are slices; none where inputs are those behind compressed blocks.
        plain: the energies of the plain weights of all blocks, where `ranks.spectrum` asks for them.
    """

    statistics: Artifact
    spectra: list[Artifact]
    plain: list[Artifact]


def measure_calibration(inputs: Inputs) -> Prepared:
    """Measure the statistics of the calibration, and decompose by the factorizer of the run."""
    statistics, spectra, plain = measure_statistics(inputs), list[Artifact](), list[Artifact]()
    if inputs.params.statistics.inputs == "dense":
        spectra = start_decomposition(inputs, statistics, factorizer_of(inputs.params)).result()
        plain = plain_spectra(inputs, [inputs.params.ranks])
    return Prepared(**vars(inputs), statistics=statistics, spectra=spectra, plain=plain)


def plain_spectra(inputs: Inputs, rules: Iterable[Ranks]) -> list[Artifact]:
    """The energies of the plain weights of all blocks, if one of these rules compares them; otherwise none."""
    if all(rule.spectrum != "plain" for rule in rules):
        return []
    store, backbone = unmapped(inputs.store), unmapped(inputs.backbone)
    found: list[Artifact] = weigh_plain.map(store, backbone, block=inputs.blocks, device=inputs.device).result()
    return found


def start_decomposition(inputs: Inputs, statistics: Artifact, factors: MethodSpec) -> PrefectFutureList[Artifact]:
    """The spectra of all blocks, on their way."""
    return decompose.map(
        store=unmapped(inputs.store),
        backbone=unmapped(inputs.backbone),
        statistics=unmapped(statistics),
        block=inputs.blocks,
        factors=factors,
        device=inputs.device,
    )
