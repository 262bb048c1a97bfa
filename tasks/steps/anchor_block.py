"""Step 8 for one block that is fitted to the dense model behind compressed blocks (`mgaa.anchoring`): its factors at given ranks.

Each block is keyed by the factors before it, so a killed run resumes at the block where it stopped (tasks/steps/block_state.py).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.artifacts.factors import write_factors
from tasks.artifacts.files import RANKS, backbone_matrices, block_file, read_table
from tasks.artifacts.specs import AnchorSpec, MethodSpec
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step
from tasks.steps.block_state import state_before


@step(kind="factors", methods={"factors": "mgaa.factors"}, task_run_name="anchor_block-{block}")
def anchor_block(
    out: Path,
    store: Store,
    backbone: Artifact,
    tokens: Artifact,
    statistics: Artifact,
    ranks: Artifact,
    before: Sequence[Artifact],
    *,
    block: int,
    factors: MethodSpec,
    fit: AnchorSpec,
    device: str,
) -> None:
    """Factorize `block` stage by stage; write its factors, and the weights of matrices that stay dense.

    Args:
        statistics: of the calibration, for the gradients in them.
        ranks: of the whole model.
        before: the factors of the blocks before it, in order.
    """
    from mgaa.anchoring.fitting import FitRequest
    from mgaa.statistics.statistics import load_gradients

    inside = [matrix for matrix in backbone_matrices(store, backbone) if matrix.block == block]
    outcome = read_table(store, ranks, RANKS)["matrices"]
    gradients = load_gradients(store.folder(statistics) / block_file(block), device)
    factorizer = factors.method, factors.options
    wanted = FitRequest(inside, {m.name: outcome[m.name]["rank"] for m in inside}, factorizer, gradients)
    recipe: dict[str, Any] = {
        "ranks": ranks.digest,
        "statistics": statistics.digest,
        "factors": factorizer,
        "anchoring": asdict(fit.anchoring),
        "refinement": None if fit.refinement is None else asdict(fit.refinement),
    }
    with state_before(store, backbone, tokens, before, recipe, fit.calibration, device, _Anchors(fit)) as state:
        found = state.anchor.compress(block, wanted)
        write_factors(out / block_file(block), found.factors, None, dense=found.dense)


@dataclass(frozen=True)
class _Anchors:
    """Settings of the fit: a `tasks.steps.block_state.AnchorFactory`."""

    fit: AnchorSpec

    def waiting(self, model: Any, tokens: int) -> int:
        """Bytes of hidden states that are held while a block is anchored."""
        from mgaa.anchoring.sublayer_cache import cache_bytes
        from mgaa.plan.layout import layout_of

        layout = layout_of(model)
        return cache_bytes(tokens, layout.hidden, layout.widest_written, layout.itemsize)

    def anchor(self, backbone: Any, model: Any, dense: Any, compressed: Any, *, remember: bool) -> Any:
        """The calibration of both models, at the input of their next block."""
        from mgaa.anchoring.anchoring import Anchor

        how = self.fit.calibration, self.fit.anchoring, self.fit.refinement
        return Anchor(backbone, model, dense, compressed, *how, remember=remember)
