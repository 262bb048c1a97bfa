"""The order-5 byte model: a proper distribution, equal to its definition."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from demo import byte_model

TEXT = b"abracadabra, the cat sat on the mat; abracadabra again. " * 3 + bytes(range(256))


@pytest.mark.parametrize("context", [b"", b"a", b"abrac", b"the ca", b"\xff\xfe\xfd never seen"])
def test_the_probabilities_of_all_next_bytes_sum_to_one(context: bytes) -> None:
    model = byte_model.fit(TEXT)
    total = sum(model.probabilities(context + bytes([each]))[-1] for each in range(256))
    assert total == pytest.approx(1.0, abs=1e-12)


def test_probabilities_are_those_of_witten_bell_interpolation() -> None:
    order, text = 3, b"the bat sat, then the cat; zebra"
    counts: dict[bytes, Counter[int]] = defaultdict(Counter)
    padded = bytes(order) + TEXT
    for place in range(order, len(padded)):
        for length in range(order + 1):
            counts[padded[place - length : place]][padded[place]] += 1

    def probability(context: bytes, following: int) -> float:
        lower = probability(context[1:], following) if context else 1 / 256
        seen = counts.get(context, Counter())
        total, kinds = seen.total(), len(seen)
        return (seen[following] + kinds * lower) / (total + kinds) if total else lower

    whole = bytes(order) + text
    expected = [probability(whole[place - order : place], whole[place]) for place in range(order, len(whole))]
    assert byte_model.fit(TEXT, order).probabilities(text) == pytest.approx(np.array(expected))


def test_known_text_costs_less_than_unknown_text() -> None:
    model = byte_model.fit(TEXT)
    assert model.bits(b"abracadabra") < model.bits(b"zyxwvutsrqp") < 8 * 3 * 11
