"""A process keeps one model per device, and drops it before it loads another."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.artifacts.loaded import LoadedModels


class Weights:
    """Stands for a model; it can be watched."""


def test_the_same_model_is_loaded_once_per_device() -> None:
    models = LoadedModels[Weights]()
    first = models.get("cpu", "a", Weights)
    assert models.get("cpu", "a", Weights) is first
    assert models.get("cuda", "a", Weights) is not first
    assert models.get("cpu", "a", Weights) is first


def test_a_model_is_dropped_before_another_one_is_loaded_on_its_device() -> None:
    models = LoadedModels[Weights]()
    watched = weakref.ref(models.get("cpu", "a", Weights))
    alive: list[bool] = []

    def load() -> Weights:
        gc.collect()
        alive.append(watched() is not None)
        return Weights()

    models.get("cuda", "b", load)
    models.get("cpu", "b", load)
    assert alive == [True, False]


def test_a_model_that_cannot_be_loaded_leaves_none() -> None:
    models = LoadedModels[Weights]()
    first = models.get("cpu", "a", Weights)

    def fail() -> Weights:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        models.get("cpu", "b", fail)
    assert models.get("cpu", "a", Weights) is not first


def test_cleared_models_are_loaded_again() -> None:
    models = LoadedModels[Weights]()
    first = models.get("cpu", "a", Weights)
    models.clear()
    assert models.get("cpu", "a", Weights) is not first


def test_threads_that_want_one_model_share_one_load() -> None:
    models, loads = LoadedModels[Weights](), list[int]()

    def load() -> Weights:
        loads.append(1)
        return Weights()

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: models.get("cpu", "a", load), range(16)))
    assert (len(found), len(loads)) == (1, 1)
