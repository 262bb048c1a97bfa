"""What a compression takes, from the config and the settings alone: memory of the device and of the host, disk, arithmetic, time.

The model is built on the meta device, where tensors have shapes and no content, so a plan of 70 billion parameters takes seconds and no
weights. Each stage is the sum of the tensors that its code holds at the worst moment; what is named here is found again in the file that
is named beside it. Pages of files that the system keeps and can drop (the page cache) do not count. Time is arithmetic over the rates
of this machine (`mgaa.blocks.hardware`), plus bytes over the rate of its disk: an estimate, good for telling minutes from hours.
"""

from mgaa.plan.anchored import anchor
from mgaa.plan.factors import decompose, factorize
from mgaa.plan.layout import Layout
from mgaa.plan.measured import calibrate, differentiate, load
from mgaa.plan.models import assemble, evaluate, export
from mgaa.plan.settings import Settings, Stage


def plan(layout: Layout, settings: Settings) -> list[Stage]:
    """The stages of a run in order."""
    return [
        load(layout),
        calibrate(layout, settings),
        *([differentiate(layout, settings)] if settings.gradients else []),
        decompose(layout, settings),
        anchor(layout, settings) if settings.anchored else factorize(layout, settings),
        assemble(layout, settings),
        *([evaluate(layout, settings)] if settings.evaluation else []),
        export(layout, settings),
    ]
