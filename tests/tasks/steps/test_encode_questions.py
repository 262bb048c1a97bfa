"""Questions become sequences as the backbone's own processor makes them, answers last, in the order of rising length."""

from pathlib import Path

import pytest
import torch

from demo import vlm
from demo.scenes import CAPTION, TYPES, examples
from mgaa.errors import InputError, UsageError
from mgaa.inputs.prompts import Prompts
from mgaa.inputs.tokens import digest
from mgaa.models.model_inputs import IDS
from mgaa.models.processors import load_processor
from tasks.artifacts.backbone import backbone_processor
from tasks.artifacts.calibration_input import sequences_of
from tasks.artifacts.files import CARD, PROMPTS, backbone_record, read_table
from tasks.cache.artifact import Artifact, Store
from tasks.steps.encode_questions import encode_questions, template_rule
from tests.support.finished import write_model
from tests.support.vision import kept, reading, referred, scenes, written

COUNT = 12
CALIBRATION = "calibration"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("encode") / "store")


@pytest.fixture(scope="module")
def backbone(store: Store) -> Artifact:
    return referred(store)


@pytest.fixture(scope="module")
def questions(store: Store) -> Artifact:
    return reading(store, {CALIBRATION: scenes(COUNT, CALIBRATION)})


@pytest.fixture(scope="module")
def tokens(store: Store, backbone: Artifact, questions: Artifact) -> Artifact:
    return encode_questions.fn(store, backbone, questions, section=CALIBRATION)


def test_a_sequence_is_the_conversation_as_the_processor_of_the_demo_makes_it(store: Store, tokens: Artifact) -> None:
    reader = vlm.processor()
    expected = [
        reader.apply_chat_template(
            vlm.conversation([(each.question, each.answer)], each.image),
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt"},
        )
        for each in examples(CALIBRATION, COUNT, 0, (*TYPES, CAPTION))
    ]
    expected.sort(key=lambda each: each[IDS].shape[1])  # stable, as `by_length`
    found = Prompts.load(store.folder(tokens) / PROMPTS)
    assert found.lengths == [each[IDS].shape[1] for each in expected]
    for given, wanted in zip(found.sequences, expected, strict=True):
        assert given.keys() == {IDS, "pixel_values"}
        assert torch.equal(given[IDS], wanted[IDS])
        assert torch.equal(given["pixel_values"], wanted["pixel_values"])


def test_the_last_tokens_of_a_sequence_are_its_answer_and_the_end_mark(store: Store, tokens: Artifact) -> None:
    reader, found = vlm.processor(), sequences_of(store, tokens)
    said = [reader.decode(each[IDS][0, -answer:]) for each, answer in zip(found.sequences, found.answers, strict=True)]
    drawn = examples(CALIBRATION, COUNT, 0, (*TYPES, CAPTION))
    assert sorted(said) == sorted(f"{each.answer}</s>" for each in drawn)


def test_every_image_has_its_tokens_and_the_card_counts_them(
    store: Store, backbone: Artifact, questions: Artifact, tokens: Artifact
) -> None:
    found, card = sequences_of(store, tokens), read_table(store, tokens, CARD)
    assert [int((each[IDS] == found.image_token).sum()) for each in found.sequences] == [16] * COUNT
    assert (card["sequences"], card["tokens"], card["image_tokens"]) == (COUNT, sum(found.lengths), 16 * COUNT)
    assert card["length"] == max(found.lengths) == found.lengths[-1]
    assert card["token_digest"] == digest(found.ids())
    assert card["data_digest"] == read_table(store, questions, CARD)["sections"][CALIBRATION]["data_digest"]
    _, processor = backbone_processor(store, backbone)
    assert card["bos_rule"] == template_rule(processor)
    assert "chat template" in card["bos_rule"]
    assert int(found.ids().max()) < backbone_record(store, backbone)["vocabulary"]


def test_the_same_questions_give_the_same_artifact_and_others_another(
    store: Store, backbone: Artifact, questions: Artifact, tokens: Artifact
) -> None:
    assert encode_questions.fn(store, backbone, questions, section=CALIBRATION) == tokens
    others = reading(store, {CALIBRATION: scenes(COUNT, CALIBRATION, seed=1)})
    assert encode_questions.fn(store, backbone, others, section=CALIBRATION) != tokens


def test_questions_about_no_image_are_sequences_without_pixels(
    store: Store, backbone: Artifact, tmp_path: Path
) -> None:
    blind = reading(store, {CALIBRATION: written(tmp_path / "data", [{"question": "Who?", "answer": "Ann"}], {})})
    found = sequences_of(store, encode_questions.fn(store, backbone, blind, section=CALIBRATION))
    assert (found.has_images, found.sequences[0].keys()) == (False, {IDS})


def test_what_the_model_cannot_take_is_refused_and_nothing_is_left(
    store: Store, backbone: Artifact, questions: Artifact, tokens: Artifact, tmp_path: Path
) -> None:
    before = kept(store, "tokens")
    with pytest.raises(InputError, match="no section 'recovery'; there is: calibration"):
        encode_questions.fn(store, backbone, questions, section="recovery")
    long = written(tmp_path / "long", [{"question": "why " * 3000, "answer": "so"}], {})
    with pytest.raises(InputError, match=r"the longest prompt has \d+ tokens, expected at most \d+ \(the model's posi"):
        encode_questions.fn(store, backbone, reading(store, {CALIBRATION: long}), section=CALIBRATION)
    write_model(tmp_path / "blind")
    with pytest.raises(UsageError, match="expected the config of a vision-language model"):
        encode_questions.fn(store, referred(store, tmp_path / "blind"), questions, section=CALIBRATION)
    assert kept(store, "tokens") == before


def test_a_text_that_holds_the_mark_of_an_image_in_its_answer_is_refused(
    store: Store, backbone: Artifact, tmp_path: Path
) -> None:
    marked = written(tmp_path / "data", [{"question": "Who?", "answer": "<image>"}], {})
    with pytest.raises(InputError, match=r"the question 'Who\?'"):
        encode_questions.fn(store, backbone, reading(store, {CALIBRATION: marked}), section=CALIBRATION)


def test_the_processor_that_is_read_from_the_files_is_that_of_the_demo(store: Store, backbone: Artifact) -> None:
    record = backbone_record(store, backbone)
    config, processor = backbone_processor(store, backbone)
    assert (record["sees"], record["model_type"], record["parts"]) == (True, "llava", ["decoder"])
    own = load_processor(Path(record["source"]), config)
    assert type(processor) is type(own)
    assert processor.chat_template == own.chat_template == vlm.TEMPLATE
