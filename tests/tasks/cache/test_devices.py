"""Steps that run at once compute on different devices, and nothing but the body of a step knows on which."""

from pathlib import Path

import pytest

from tasks.cache import devices
from tasks.cache.artifact import Store
from tasks.cache.devices import Pool, placed
from tasks.cache.step import step

seen: list[str] = []


@step(kind="places")
def compute(out: Path, store: Store, *, number: int, device: str) -> None:
    """Where this is computed."""
    seen.append(device)
    (out / "number.txt").write_text(str(number))


def test_steps_at_once_have_a_device_each_and_more_of_them_share_the_least_used() -> None:
    pool = Pool(["cuda:0", "cuda:1", "cuda:2"])
    with pool.taken() as first, pool.taken() as second, pool.taken() as third, pool.taken() as fourth:
        assert [first, second, third, fourth] == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
        with pool.taken() as fifth:
            assert fifth == "cuda:1"
        with pool.taken() as again:
            assert again == fifth
    assert set(pool.users.values()) == {0}


def test_a_device_is_free_again_when_its_step_fails() -> None:
    pool = Pool(["cuda:0", "cuda:1"])
    with pytest.raises(ZeroDivisionError), pool.taken():
        raise ZeroDivisionError
    assert pool.users == {"cuda:0": 0, "cuda:1": 0}


@pytest.mark.parametrize("arguments", [{"device": "cpu"}, {"device": "cuda:3"}, {"block": 1}])
def test_only_a_step_on_any_card_is_placed(arguments: dict[str, object]) -> None:
    with placed(arguments, Pool(["cuda:0", "cuda:1"])) as given:
        assert given == arguments


def test_the_key_of_a_step_is_the_same_on_every_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen.clear()
    pool, store = Pool(["cuda:0", "cuda:1"]), Store(tmp_path / "store")
    monkeypatch.setattr(devices, "cards", lambda: pool)
    with pool.taken() as first:
        artifact = compute.fn(store, number=1, device="cuda")
    assert (first, seen) == ("cuda:0", ["cuda:1"])
    assert compute.fn(store, number=1, device="cuda") == artifact
    assert seen == ["cuda:1"]
    assert store.manifest(artifact)["parameters"] == {"number": 1, "device": "cuda"}
