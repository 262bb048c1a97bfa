"""The ladders of a whole model (`mgaa.budget`), and the scores of the FFNs that are pruned, put together from the files of its blocks."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.artifacts.files import backbone_matrices, backbone_record, block_file
from tasks.artifacts.specs import TargetSpec
from tasks.cache.artifact import Artifact, Store


def pruning_of(channels: Mapping[str, Any] | None) -> Any:
    """The pruning of FFNs, from the plain parameter of a step; `None` where they are not pruned."""
    from mgaa.allocation.channels import Pruning

    return None if channels is None else Pruning(**channels)


def latency_of(store: Store, backbone: Artifact, latency: Mapping[str, Any] | None) -> Any:
    """The objective latency (`mgaa.allocation.latency`), from the plain parameter of a step; `None` where the objective is parameters.

    Raises:
        InputError: the profile is missing or damaged.
        UsageError: it is of another dtype or device, or of other numbers of tokens.
    """
    from mgaa.allocation import latency as library

    return None if latency is None else library.load_latency(dtype=backbone_record(store, backbone)["dtype"], **latency)


def target_of(store: Store, backbone: Artifact, target: TargetSpec) -> Any:
    """The `mgaa.levels.Target` of a step; raises what `latency_of` raises."""
    from mgaa.levels import Target

    pruning, latency = pruning_of(target.channels), latency_of(store, backbone, target.latency)
    return Target(target.compression, target.multiple, pruning, latency, target.spectrum)


def model_ladders(
    store: Store,
    backbone: Artifact,
    spectra: Sequence[Artifact],
    scores: Sequence[Artifact],
    plain: Sequence[Artifact] = (),
    *,
    multiple: int | str,
    channels: Mapping[str, Any] | None,
    latency: Any = None,
) -> tuple[list[Any], dict[Any, Any]]:
    """The ladder of every matrix that is factorized, in model order, and the scores of every FFN that is pruned.

    Args:
        spectra, scores: of all blocks; no scores where `channels` is null.
        plain: energies of the plain weights of all blocks, where rules compare these.
        latency: what `latency_of` gives.
    """
    from safetensors.torch import load_file

    from mgaa.allocation.channels import load_scores, prunable_ffns
    from mgaa.factors import load_energies
    from mgaa.ranks import ladders_of

    matrices, pruning = backbone_matrices(store, backbone), pruning_of(channels)
    pruned = [] if pruning is None else prunable_ffns(matrices, pruning)
    found = {
        name: each
        for block, artifact in enumerate(scores)
        for name, each in load_scores(store.folder(artifact) / block_file(block)).items()
    }
    low = [matrix for matrix in matrices if matrix.sublayer not in {each.sublayer for each in pruned}]
    blocks = [load_energies(store.folder(artifact) / block_file(block)) for block, artifact in enumerate(spectra)]
    energies = {m.name: energy for m in low if (energy := blocks[m.block][0].get(m.local)) is not None}
    centred = any(centred for _, centred in blocks)
    weighed = {
        name: each
        for block, artifact in enumerate(plain)
        for name, each in load_file(store.folder(artifact) / block_file(block)).items()
    }
    ladders = ladders_of(low, energies, centred=centred, multiple=multiple, latency=latency, plain=weighed)
    return ladders, {each: found[each.sublayer] for each in pruned}
