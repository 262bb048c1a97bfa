"""Resources that a compression needs, from the config and the settings alone: memory of the device and of the host, disk, arithmetic, time.

The model is built on the meta device, where tensors have shapes and no content, so a plan of 70 billion parameters takes seconds and no
weights. The cost of a stage is the sum of the tensors that its code holds at the peak; each plan names the module that it describes. Pages
of files that the system may drop (the page cache) do not count. Time is arithmetic over the rates of this machine (`mgaa.blocks.hardware`),
plus bytes over the rate of its disk: an estimate that tells minutes from hours.
"""

from mgaa.plan.anchored import anchor
from mgaa.plan.factors import decompose, factorize
from mgaa.plan.layout import Layout
from mgaa.plan.measured import calibrate, dequantize, differentiate, load
from mgaa.plan.models import assemble, evaluate, export
from mgaa.plan.settings import Settings, StageCost


def plan(layout: Layout, settings: Settings) -> list[StageCost]:
    """Plan the stages of a run in order."""
    return [
        *([dequantize(layout, settings)] if settings.gguf else []),
        load(layout),
        calibrate(layout, settings),
        *([differentiate(layout, settings)] if settings.gradients else []),
        decompose(layout, settings),
        anchor(layout, settings) if settings.anchored else factorize(layout, settings),
        assemble(layout, settings),
        *([evaluate(layout, settings)] if settings.evaluation else []),
        export(layout, settings),
    ]
