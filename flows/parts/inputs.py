"""The first half of the prelude that flows share: a backbone, and the data of the run in its tokens.

A flow loads the backbone first and checks its parameters against it, so that a mistake costs no calibration; then it prepares its inputs.
What the calibration measures comes next (flows/parts/prepared.py).
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from flows.command.runner import worker_count
from flows.parts.device import resolve_device
from flows.parts.source import prepare_source
from flows.prepare_data import prepare_tokens
from mgaa.errors import InputError
from tasks.artifacts.files import backbone_record
from tasks.artifacts.specs import MethodSpec
from tasks.cache.artifact import Artifact, Store
from tasks.cache.placement import Placement
from tasks.config.parameters import Parameters
from tasks.planning.preflight import check_groups
from tasks.planning.recipes import recipes
from tasks.planning.resources import plan_run, refuse_what_cannot_fit
from tasks.steps.load_backbone import load_backbone
from tasks.steps.read_texts import SECTIONS


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A model with the data of a run.

    Attributes:
        backbone: artifact `backbone`, or `model` of one that is only evaluated.
        tokens: by section.
        questions: about images; null where the run reads none.
    """

    params: Parameters
    store: Store
    device: Placement
    backbone: Artifact
    texts: Artifact
    tokens: dict[str, Artifact]
    questions: Artifact | None

    @property
    def blocks(self) -> list[int]:
        """The indices of the blocks of the backbone."""
        return [*range(backbone_record(self.store, self.backbone)["blocks"])]


def factorizer_of(params: Parameters) -> MethodSpec:
    """The factorizer of the section `factors`."""
    return MethodSpec(params.factors.method, params.factors.options)


def prepare_inputs(
    params: Parameters,
    store: Store,
    backbone: Artifact,
    texts: Artifact,
    questions: Artifact | None = None,
    *,
    sections: Sequence[str] = SECTIONS,
    factorizers: Iterable[MethodSpec] = (),
) -> Inputs:
    """Tokenize the data.

    Args:
        questions: those of `prepare_questions`, where they were prepared.
        factorizers: which the calibration is for.

    Raises:
        UsageError: fewer calibration sequences than groups for a factorizer that depends on groups, or a length beyond the model's.
    """
    tokens = prepare_tokens(params, store, backbone, texts, sections, questions)
    for factorizer in factorizers:
        check_groups(store, tokens["calibration"], factorizer, params.statistics.groups)
    return Inputs(
        params=params,
        store=store,
        device=resolve_device(params),
        backbone=backbone,
        texts=texts,
        tokens=tokens,
        questions=questions,
    )


def prepare_backbone(params: Parameters, store: Store) -> Artifact:
    """Load the backbone of a run; a run that cannot fit into memory or onto the disk ends before."""
    with suppress(InputError):  # of a backbone that cannot be planned with, `load_backbone` says what is wrong
        refuse_what_cannot_fit(
            plan_run(params, resolve_device(params), models=len(recipes(params)), workers=worker_count(params))
        )
    source = prepare_source(store, params.backbone.source, params.backbone.revision, params.backbone.dtype)
    found: Artifact = load_backbone(store, **source, parts=list(params.backbone.parts))
    return found
