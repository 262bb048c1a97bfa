"""Step 11, draw figures: the run in five pictures (tasks/figures.py), each as PNG and as SVG."""

from collections.abc import Sequence
from pathlib import Path

from tasks.artifact import Artifact, Store
from tasks.records import METRICS, backbone_matrices, block_file, table
from tasks.step import step
from tasks.summarize import allocation

DENSE = "dense"


@step(kind="figures")
def draw_figures(
    out: Path,
    store: Store,
    backbone: Artifact,
    statistics: Artifact,
    spectra: Sequence[Artifact],
    ratios: Sequence[Artifact],
    ranks: Sequence[Artifact],
    metrics: Sequence[Artifact],
    *,
    models: list[str],
) -> None:
    """Draw `ranks`, `sublayers`, `energies`, `errors` and `sizes`.

    Args:
        ratios, ranks: of every compressed model, in the order of `models`.
        metrics: of the dense model, then of every compressed one.
        models: names of the compressed models, the run's method last.
    """
    from tasks import figures
    from tasks.figure_style import save, style

    pairs = zip(models, ratios, ranks, strict=True)
    allocations = {name: allocation(store, backbone, statistics, *tables) for name, *tables in pairs}
    measured = {name: table(store, each, METRICS) for name, each in zip([DENSE, *models], metrics, strict=True)}
    with style():
        save(figures.ranks(allocations), out / "ranks")
        save(figures.sublayers(allocations), out / "sublayers")
        save(figures.energies(allocations, energy_curves(store, backbone, spectra)), out / "energies")
        save(figures.errors(allocations), out / "errors")
        save(figures.sizes(measured), out / "sizes")


def energy_curves(
    store: Store, backbone: Artifact, spectra: Sequence[Artifact]
) -> dict[str, tuple[list[float], list[float]]]:
    """Kept share of parameters and kept energy at every rank up to break-even, by matrix."""
    from mgaa.budget import kept_energy
    from mgaa.factors import load_energies

    blocks = [load_energies(store.folder(artifact) / block_file(block)) for block, artifact in enumerate(spectra)]
    curves = {}
    for matrix in backbone_matrices(store, backbone):
        found, centred = blocks[matrix.block]
        ranks = range(matrix.largest_rank(centred=centred) + 1)
        shares = [matrix.cost(rank, centred=centred) / matrix.parameters for rank in ranks]
        curves[matrix.name] = shares, kept_energy(found[matrix.local])[: len(ranks)].tolist()
    return curves
