"""Step 5c, weigh plain: energies of the plain weights of one block, which level 2 compares where `ranks.spectrum=plain`.

They depend on the backbone alone, so every factorizer and every calibration shares them.
"""

from pathlib import Path

from tasks.artifacts.backbone import backbone_block
from tasks.artifacts.files import backbone_matrices, block_file
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step


@step(kind="energies", task_run_name="weigh_plain-{block}")
def weigh_plain(out: Path, store: Store, backbone: Artifact, *, block: int, device: str) -> None:
    """Write the squared singular values of every matrix of `block`, by its name in the model, in float64."""
    from safetensors.torch import save_file

    from mgaa.decomposition.linalg import plain_energies

    names = [matrix.name for matrix in backbone_matrices(store, backbone) if matrix.block == block]
    with backbone_block(store, backbone, block, device) as model:
        weights = {name: model.get_submodule(name).weight.detach() for name in names}
        save_file({name: plain_energies(weight).cpu() for name, weight in weights.items()}, out / block_file(block))
