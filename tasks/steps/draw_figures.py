"""Step 11, draw figures: the run in five pictures (tasks/figures/run_figures.py), each as PNG and as SVG."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.artifacts.allocation_table import allocation
from tasks.artifacts.files import (
    ANSWERS,
    CURVE,
    METRICS,
    RANKS,
    backbone_matrices,
    block_file,
    energy_file,
    score_file,
    table,
)
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step

DENSE = "dense"


@step(kind="figures")
def draw_figures(
    out: Path,
    store: Store,
    backbone: Artifact,
    statistics: Artifact,
    spectra: Sequence[Artifact],
    scores: Sequence[Artifact],
    ratios: Sequence[Artifact],
    ranks: Sequence[Artifact],
    metrics: Sequence[Artifact],
    tuned: Artifact | None,
    answers: Sequence[Artifact],
    questions: Artifact | None,
    *,
    models: list[str],
    sets: list[str],
) -> None:
    """Draw `ranks`, `sublayers`, `energies`, `errors` and `sizes`, `recovery` where there was one, and `answers_<set>` of questions.

    Args:
        spectra: of all blocks, or the `factors` that were made behind compressed blocks.
        scores: of the channels of all blocks, where the method prunes FFNs and `spectra` are spectra.
        tuned: the checkpoint after recovery.
        ratios, ranks: of every compressed model, in the order of `models`.
        metrics: of the dense model, then of every compressed one.
        answers: of the dense model, then of the run's method, to every set of questions.
        questions: with the images that those are about.
        models: names of the compressed models, the run's method last.
        sets: names of the sets of questions, in the order of the answers of a model.
    """
    from tasks.figures import answers as figure_answers
    from tasks.figures import run_figures
    from tasks.figures.style import save, style

    pairs = zip(models, ratios, ranks, strict=True)
    allocations = {name: allocation(store, backbone, statistics, *tables) for name, *tables in pairs}
    measured = {name: table(store, each, METRICS) for name, each in zip([DENSE, *models], metrics, strict=True)}
    with style():
        save(run_figures.ranks(allocations), out / "ranks")
        save(run_figures.sublayers(allocations), out / "sublayers")
        curves = energy_curves(store, backbone, spectra, scores, table(store, ranks[-1], RANKS)["channels"])
        save(run_figures.energies(allocations, curves), out / "energies")
        save(run_figures.errors(allocations), out / "errors")
        save(run_figures.sizes(measured), out / "sizes")
        if tuned is not None:
            save(run_figures.recovery(table(store, tuned, CURVE)), out / "recovery")
        for index, name in enumerate(sets):
            assert questions is not None, "there are answers"
            pair = {DENSE: answers[index], models[-1]: answers[len(sets) + index]}
            given = {model: table(store, each, ANSWERS)["answers"] for model, each in pair.items()}
            save(
                figure_answers.answers(name, store.folder(questions) / f"questions.{name}", given),
                out / f"answers_{name}",
            )


def energy_curves(
    store: Store,
    backbone: Artifact,
    spectra: Sequence[Artifact],
    scores: Sequence[Artifact],
    channels: Mapping[str, Any] | None,
) -> dict[str, tuple[list[float], list[float]]]:
    """Kept share of parameters and kept energy at every rank up to break-even, by matrix; of a pruned one at every width."""
    from mgaa.allocation.channels import Scores, load_scores
    from mgaa.budget import kept_energy
    from mgaa.factors import load_energies

    blocks = [load_energies(place) for place in places(store, spectra, energy_file)]
    pruned: dict[str, Scores] = {}
    for place in places(store, scores or spectra, score_file) if channels else ():
        pruned |= load_scores(place)
    curves = {}
    for matrix in backbone_matrices(store, backbone):
        found, centred = blocks[matrix.block]
        if channels and matrix.sublayer in pruned:
            curves[matrix.name] = pruned[matrix.sublayer].curve(matrix.local, channels["keep_least"])
        elif matrix.local not in found:  # nothing has reached it, and it stays dense
            curves[matrix.name] = [1.0], [1.0]
        else:
            ranks = range(matrix.largest_rank(centred=centred) + 1)
            shares = [matrix.cost(rank, centred=centred) / matrix.parameters for rank in ranks]
            curves[matrix.name] = shares, kept_energy(found[matrix.local])[: len(ranks)].tolist()
    return curves


def places(store: Store, artifacts: Sequence[Artifact], beside: Callable[[int], str]) -> list[Path]:
    """The files of all blocks: their own artifacts hold one each, `factors` that were made block after block hold it `beside`."""
    return [
        store.folder(each) / (beside(block) if each.kind == "factors" else block_file(block))
        for block, each in enumerate(artifacts)
    ]
