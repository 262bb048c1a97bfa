"""Peak number of bytes in tensors during a piece of work: exact, from the allocator of torch."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_of(work: Callable[[], object]) -> int:
    """Peak bytes on the CPU above those allocated before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = work()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = top = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        top = max(top, now)
    del kept
    return top
