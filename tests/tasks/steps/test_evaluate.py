"""The numbers of an evaluation are those that its texts, its tokens and its model give by hand."""

import math

import pytest

from mgaa.evaluation.perplexity import perplexity
from tasks.artifacts.backbone import backbone_model
from tasks.artifacts.files import METRICS, read_table, texts_of, token_stream
from tests.support.finished import finished_run


def test_bits_per_byte_are_those_of_all_tokens_over_all_bytes_of_the_texts() -> None:
    run = finished_run()
    found = read_table(run.store, run.results.dense.metrics, METRICS)
    ids, _ = token_stream(run.store, run.results.tokens["evaluation"])
    size = sum(len(text.encode()) for text in texts_of(run.store, run.results.texts, "evaluation"))
    assert len(ids) > found["card"]["tokens"]  # the first of each window is not scored
    assert found["bits_per_byte"] == pytest.approx(found["nll"] / math.log(2) * len(ids) / size, rel=1e-12)


def test_each_perplexity_is_that_of_its_own_tokens() -> None:
    run = finished_run()
    found = read_table(run.store, run.results.dense.metrics, METRICS)
    model, _ = backbone_model(run.store, run.results.backbone, "cpu")
    evaluation, validation = (
        perplexity(model, token_stream(run.store, run.results.tokens[section])[0], length=16)
        for section in ("evaluation", "validation")
    )
    assert evaluation.perplexity != pytest.approx(validation.perplexity, rel=1e-3)
    assert evaluation.standard_error is not None
    assert found["perplexity"] == evaluation.perplexity
    assert found["validation_perplexity"] == validation.perplexity
    assert found["perplexity_stderr"] == evaluation.perplexity * evaluation.standard_error
