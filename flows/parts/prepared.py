"""The second half of the prelude that flows share: the measurements of the calibration.

inputs -> statistics -> spectra
"""

from dataclasses import dataclass

from prefect import unmapped
from prefect.futures import PrefectFutureList

from flows.parts.calibration import measure_statistics
from flows.parts.inputs import Inputs, factorizer_of
from tasks.artifacts.specs import MethodSpec
from tasks.cache.artifact import Artifact
from tasks.steps.decompose import decompose


@dataclass(frozen=True, kw_only=True)
class Prepared(Inputs):
    """Inputs with the measurements of their calibration.

    Attributes:
        spectra: the decompositions of all blocks, in which all models are slices; none where inputs are those behind compressed blocks.
    """

    statistics: Artifact
    spectra: list[Artifact]


def measure_calibration(inputs: Inputs) -> Prepared:
    """Measure the statistics of the calibration, and decompose by the factorizer of the run."""
    statistics, spectra = measure_statistics(inputs), list[Artifact]()
    if inputs.params.statistics.inputs == "dense":
        spectra = start_decomposition(inputs, statistics, factorizer_of(inputs.params)).result()
    return Prepared(**vars(inputs), statistics=statistics, spectra=spectra)


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
