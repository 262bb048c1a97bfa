"""Latency profile of a device: times of a model's linear layers, dense and at low ranks, for `ranks.objective=latency`.

    python -m flows.profile_device [section.key=value ...]

Times every distinct shape of `backbone.source` on `backbone.device` in its dtype, with random weights (those of the model are not loaded),
and writes `results/latency.json` (`profile.output`). Run it on the otherwise idle target device, and give the file to `flows.compress`
anywhere: `ranks.objective=latency ranks.profile=results/latency.json`. It is not a step: times are not cached.
"""

if __name__ == "__main__":
    from flows.command.cli import main

    raise SystemExit(main("flows.profile_device:profile_device", show="flows.profile_device:show"))


from flows.parts.device import resolve_device
from mgaa.allocation.device_profile import measure
from mgaa.allocation.latency import load_profile
from mgaa.checkpoints.meta_model import load_meta_model
from mgaa.levels import adds_biases
from mgaa.models.architectures import matrices_of
from tasks.cache.atomic import place_files
from tasks.config.outputs import Output, check_outputs
from tasks.config.parameters import Parameters


def profile_device(parameters: Parameters) -> None:
    """Time the linear layers of `backbone.source` on `backbone.device`, and write the profile."""
    params, path = parameters, parameters.folder / parameters.profile.output
    check_outputs(params, Output("profile.output", path.parent, [path.name]))
    model = load_meta_model(params.backbone.source, revision=params.backbone.revision, dtype=params.backbone.dtype)
    matrices, dtype = matrices_of(model), model.dtype
    profile = measure(
        matrices,
        dtype=dtype,
        device=resolve_device(params),
        tokens=params.profile.tokens,
        repetitions=params.profile.repetitions,
        ranks=params.profile.ranks,
        multiple=params.ranks.multiple,
        centred=adds_biases((params.factors.method, params.factors.options)),
        threads=params.profile.threads,
    )
    with place_files(path.parent) as out:
        profile.save(out / path.name)


def show(parameters: Parameters) -> None:
    """Print for every shape the dense time, the largest measured rank that is faster, and break-even in parameters."""
    path = parameters.folder / parameters.profile.output
    profile = load_profile(path)
    print(f"{profile.name} ({profile.device}), {profile.dtype}, {profile.threads} threads")
    for (m, n, bias), curves in profile.curves.items():
        for tokens, curve in curves.items():
            faster = [rank for rank, timing in curve.low_rank.items() if timing.seconds < curve.dense.seconds]
            until = f"rank {max(faster)}" if faster else "no rank"
            print(
                f"{m} x {n}{' with bias' if bias else ''}, {tokens} tokens: dense {1e6 * curve.dense.seconds:.1f} us, faster at {until} of "
                f"those measured; as many parameters at rank {m * n / (m + n):.0f}"
            )
    print(f"The profile is in {path}")
