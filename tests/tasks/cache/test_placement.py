"""Truths of where a step computes: the device is what a key sees, and the rest travels along."""

import copy
import pickle

import pytest

from mgaa.blocks import hardware
from tasks.cache.devices import Pool, placed
from tasks.cache.placement import Where, place_of_hidden, streams
from tasks.cache.stage import plain

GIGABYTE = 10**9


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card with 80 GB free in a machine with 200."""
    free = {"cuda": 80 * GIGABYTE, "cpu": 200 * GIGABYTE}
    monkeypatch.setattr(hardware, "free_memory", lambda device: free[device.type])


def test_a_key_sees_the_device_alone() -> None:
    assert plain(Where("cuda:1", "always", "disk"), "device") == "cuda:1"
    assert Where("cpu", "always") == "cpu"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda where: pickle.loads(pickle.dumps(where))])
def test_it_travels_to_other_processes_whole(copied: object) -> None:
    where = copied(Where("cuda", "never", "host"))  # type: ignore[operator]
    assert (where, where.stream, where.hidden) == ("cuda", "never", "host")


def test_a_card_of_its_own_leaves_the_rest_as_it_is() -> None:
    with placed({"device": Where("cuda", "always", "disk")}, Pool(["cuda:0", "cuda:1"])) as arguments:
        where = arguments["device"]
        assert (where, where.stream, where.hidden) == ("cuda:0", "always", "disk")


@pytest.mark.parametrize(
    ("device", "weights", "streamed"),
    [("cuda", 39, False), ("cuda", 41, True), ("cpu", 99, False), ("cpu", 101, True)],
)
def test_a_model_streams_where_it_would_take_half_of_what_is_free(
    memory: None, device: str, weights: int, streamed: bool
) -> None:
    assert streams(Where(device), weights * GIGABYTE) is streamed
    assert streams(device, weights * GIGABYTE) is streamed
    assert (streams(Where(device, "always"), 1), streams(Where(device, "never"), 10**15)) == (True, False)


@pytest.mark.parametrize(("size", "place"), [(19, "device"), (21, "host"), (51, "disk")])
def test_hidden_states_wait_where_they_take_a_quarter_at_most(memory: None, size: int, place: str) -> None:
    assert place_of_hidden(Where("cuda"), size * GIGABYTE) == place
    assert place_of_hidden(Where("cuda", hidden="host"), size * GIGABYTE) == "host"
