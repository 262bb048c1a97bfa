"""Models that see: what calibration measures on prompts with images, and what compression leaves of them."""

import copy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel

import mgaa
from mgaa.blocks.blockwise import Blockwise
from mgaa.budget import parameter_budget
from mgaa.errors import InputError, UsageError
from mgaa.inputs.prompts import Prompts, Question, encode
from mgaa.models.architectures import PARTS, matrices_of, stacks_of
from mgaa.models.entries import MULTIMODAL
from mgaa.models.fused import unfuse_
from mgaa.models.lowrank import LowRankLinear
from mgaa.models.processors import tokenizer_of
from mgaa.statistics.calibration import Calibration, CalibrationSettings, merge, stream_statistics
from mgaa.statistics.shares import Share
from mgaa.statistics.statistics import BlockStatistics
from tests.support.seeing import picture, processor

Tiny = Callable[..., PreTrainedModel]
SEEING = sorted(MULTIMODAL)
PAIRS = [(family, part) for family in SEEING for part in PARTS if part != "projector" or MULTIMODAL[family].projector]
WHOLE = [
    pytest.param(
        family,
        parts,
        marks=pytest.mark.skipif(family == "mistral3" and not find_spec("torchvision"), reason="needs torchvision"),
    )
    for family in SEEING
    for parts in (("decoder",), tuple(part for each, part in PAIRS if each == family))
]
"""Models that see, with their decoder alone and with all of their parts that have linears."""


def questions(count: int = 6) -> list[Question]:
    """Questions of two lengths about images of one shape; the last one has none."""
    asked = [
        Question("w1 w2" if index % 2 else "w3 w4 w5", f"w{index + 6}", picture(index)) for index in range(count - 1)
    ]
    return [*asked, Question("w1 w2 w3", "w4")]


def prompts(model: PreTrainedModel, count: int = 6) -> Prompts:
    given, _ = encode(questions(count), processor(model.config.model_type), model.config).by_length()
    return given


@torch.no_grad()
def inputs_of(model: PreTrainedModel, given: Prompts, linear: str) -> Tensor:
    """What a linear reads in plain forward passes of one sequence each, in order: rows of all tokens."""
    rows: list[Tensor] = []
    handle = model.get_submodule(linear).register_forward_pre_hook(lambda _, arguments: rows.append(arguments[0]))
    for each in given.sequences:
        model(**each)
    handle.remove()
    return torch.cat([each.reshape(-1, each.shape[-1]) for each in rows]).double()


@pytest.mark.parametrize(("family", "part"), PAIRS)
def test_statistics_are_those_of_plain_forward_passes_of_the_prompts(tiny: Tiny, family: str, part: str) -> None:
    model = unfuse_(tiny(family), [part])
    given = prompts(model)
    matrices = matrices_of(model, [part])
    blocks = list(stream_statistics(model, given, parts=[part], batch_size=4))
    for matrix in matrices:
        found = blocks[matrix.block].of(matrix.local)
        x = inputs_of(model, given, matrix.name)
        side = x if found.side == "input" else x @ model.get_submodule(matrix.name).weight.detach().double().T
        assert found.count == len(x)
        torch.testing.assert_close(found.mean_square, x.square().mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.covariance, torch.cov(side.T, correction=0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", SEEING)
def test_cosines_of_image_and_text_tokens_make_up_that_of_all(tiny: Tiny, family: str) -> None:
    model = unfuse_(tiny(family))
    given = prompts(model)
    images = given.image_tokens / given.tokens
    assert 0 < images < 1
    for block in stream_statistics(model, given):
        for name, cosine in block.cosines.items():
            apart = images * block.apart[f"{name}/image"] + (1 - images) * block.apart[f"{name}/text"]
            assert cosine == pytest.approx(apart, abs=1e-9)
    for block in stream_statistics(model, torch.arange(40).reshape(4, 10)):
        assert block.apart == {}


@pytest.mark.parametrize("part", PARTS)
def test_shares_of_prompts_merge_to_the_bits_of_one_worker(tiny: Tiny, part: str, tmp_path: Path) -> None:
    model, measuring = unfuse_(tiny("llava")), CalibrationSettings(groups=3, batch_size=2)
    given = prompts(model)
    (stack,) = stacks_of(model, [part])
    lines = [Calibration(model, given, measuring, stack=stack, share=Share(len(given), index, 2)) for index in range(2)]
    whole = Calibration(model, given, measuring, stack=stack)
    for index in range(len(stack.blocks)):
        merged = merge(stack, index, [line.measure_sums(index) for line in lines], measuring, len(given))
        alone = whole.measure(index)
        for line in (*lines, whole):
            line.commit()
        for name, statistics in (("merged", merged), ("alone", alone)):
            statistics.save(tmp_path / name)
        assert (tmp_path / "merged").read_bytes() == (tmp_path / "alone").read_bytes()
        assert BlockStatistics.load(tmp_path / "alone").apart == alone.apart


def places_of(model: PreTrainedModel, part: str) -> str:
    """The module of the model that a part is in; the projector of some is inside the tower."""
    (stack,) = stacks_of(model, [part])
    return stack.entry.blocks.split(".")[1]


@pytest.mark.parametrize(("family", "parts"), WHOLE)
def test_a_compressed_model_is_loaded_as_it_was_saved_and_generates(
    tiny: Tiny, family: str, parts: tuple[str, ...], tmp_path: Path
) -> None:
    dense, images = tiny(family), processor(family)
    model = copy.deepcopy(dense)
    given = prompts(unfuse_(dense, parts))
    report = mgaa.compress_(model, given, compression=0.3, parts=parts)
    matrices = matrices_of(dense, parts)
    assert report.linear_parameters <= parameter_budget(matrices, 0.3)
    places = {m.name.split(".")[1] for m in matrices if isinstance(model.get_submodule(m.name), LowRankLinear)}
    assert len(places) == len({places_of(model, part) for part in parts})
    mgaa.save(model, images, tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    asked = encode(questions(1)[:1] or questions(2), images, model.config, answered=False).sequences[0]
    with torch.no_grad():
        torch.testing.assert_close(again(**asked).logits, model(**asked).logits, rtol=0, atol=0)
    said = [each.generate(**asked, max_new_tokens=4, do_sample=False) for each in (again, model)]
    assert torch.equal(*said)
    loaded, tools = mgaa.load(tmp_path)
    assert tokenizer_of(tools).get_vocab() == tokenizer_of(images).get_vocab()
    streamed, _ = mgaa.load(tmp_path, stream=True)
    with torch.no_grad():
        assert torch.equal(loaded(**asked).logits, streamed(**asked).logits)


@pytest.mark.parametrize("family", SEEING)
def test_what_comes_out_block_by_block_is_the_output_of_the_model(tiny: Tiny, family: str) -> None:
    """Also where features of images are added between the blocks, and behind the last."""
    model = tiny(family)
    given = prompts(model)
    batches = [given.batch(each) for each in given.split_by_shape([range(len(given))])]
    line = Blockwise(model, batches)
    for index in range(len(line)):
        line.advance(index)
        line.commit()
    for batch, inputs in enumerate(batches):
        with torch.no_grad():
            assert torch.equal(line.output(batch).logits, model(**inputs).logits)


@pytest.mark.parametrize(("family", "parts"), WHOLE)
def test_a_densified_model_is_one_of_transformers_alone(
    tiny: Tiny, family: str, parts: tuple[str, ...], tmp_path: Path
) -> None:
    model, images = tiny(family), processor(family)
    given = prompts(unfuse_(tiny(family), parts))
    mgaa.compress_(model, given, compression=0.3, parts=parts, factors="whitened")
    (asked, *_) = given.sequences
    with torch.no_grad():
        before = model(**asked).logits
    mgaa.save(model, images, tmp_path / "low")
    mgaa.densify_folder(tmp_path / "low", tmp_path / "folded")
    plain = mgaa.densify(model)
    plain.save_pretrained(tmp_path / "dense")
    assert "mgaa" not in (tmp_path / "folded" / "config.json").read_text()
    for name in ("folded", "dense"):
        again, info = AutoModelForImageTextToText.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(info.values())
        with torch.no_grad():
            torch.testing.assert_close(again(**asked).logits, before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_the_last_block_of_a_tower_whose_output_nobody_reads_is_no_part_of_it(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    (stack,) = stacks_of(model, ["vision"])
    assert len(stack.blocks) == 1 == model.config.vision_config.num_hidden_layers - 1
    model.config.vision_feature_layer = [-1, -2]
    assert len(stacks_of(model, ["vision"])[0].blocks) == 2


def test_a_processor_without_videos_keeps_what_is_said_of_them(tmp_path: Path, tiny: Tiny) -> None:
    tools = processor("qwen2_5_vl")
    mgaa.save(tiny("qwen2_5_vl"), tools, tmp_path / "first")
    (tmp_path / "first" / "video_preprocessor_config.json").write_text('{"fps": 3}\n')
    model, again = mgaa.load(tmp_path / "first")
    mgaa.save(model, again, tmp_path / "second")
    assert (tmp_path / "second" / "video_preprocessor_config.json").read_text() == '{"fps": 3}\n'
    assert type(again).__name__ == "Qwen2_5_VLProcessor"


def test_answers_are_the_last_tokens_of_a_prompt_and_prompts_survive_a_file(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny("llava")
    tools = processor("llava")
    given = encode(questions(), tools, model.config)
    words = tokenizer_of(tools)
    for question, sequence, answer in zip(questions(), given.sequences, given.answers, strict=True):
        assert words.decode(sequence["input_ids"][0][-answer:]) == f"{question.answer} </s>"
    given.save(tmp_path / "prompts.safetensors")
    again = Prompts.load(tmp_path / "prompts.safetensors")
    assert (again.answers, again.image_token, len(again)) == (given.answers, given.image_token, len(given))
    for one, two in zip(given.sequences, again.sequences, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


class TestMistakes:
    """What cannot be read, asked or compressed."""

    def test_a_template_that_leaves_images_out(self, tiny: Tiny) -> None:
        tools = processor("llava")
        tools.chat_template = "{% for turn in messages %}{{ turn.content[-1].text }}{% endfor %}"
        with pytest.raises(InputError, match=r"the chat template must show it|leaves images out"):
            encode(questions(), tools, tiny("llava").config)

    def test_a_question_that_holds_the_image_token(self, tiny: Tiny) -> None:
        with pytest.raises(InputError, match="a prompt of the question 'w1 <image>' "):
            encode([Question("w1 <image>", "w2")], processor("llava"), tiny("llava").config)

    def test_a_tokenizer_alone(self, tiny: Tiny) -> None:
        with pytest.raises(UsageError, match="no processor with a chat template"):
            encode(questions(), tokenizer_of(processor("llava")), tiny("llava").config)

    def test_a_prompt_beyond_the_positions(self, tiny: Tiny) -> None:
        model = tiny("llava", max_position_embeddings=16)
        with pytest.raises(InputError, match="22 tokens, expected at most 16"):
            encode(questions(), processor("llava"), model.config)

    def test_image_tokens_that_do_not_match_the_features(self, tiny: Tiny) -> None:
        model, tools = tiny("llava"), processor("llava")
        tools.patch_size = 8
        given = encode(questions(2), tools, model.config)
        with pytest.raises(InputError, match=r"does not take a prompt .* as many image tokens as its vision tower"):
            list(stream_statistics(model, given))

    def test_a_vision_tower_that_saw_nothing(self, tiny: Tiny) -> None:
        with pytest.raises(UsageError, match="none of the 4 calibration sequences has an image"):
            mgaa.compress_(tiny("llava"), torch.arange(40).reshape(4, 10), parts=PARTS)

    def test_a_part_that_there_is_not(self, tiny: Tiny) -> None:
        tokens = torch.arange(40).reshape(4, 10)
        with pytest.raises(UsageError, match="a llama has no vision"):
            mgaa.compress_(tiny("llama"), tokens, parts=("decoder", "vision"))
        with pytest.raises(UsageError, match="include ears, expected some of decoder, vision, projector"):
            mgaa.compress_(tiny("llava"), tokens, parts=("ears",))

    @pytest.mark.parametrize("setting", [{"inputs": "compressed"}, {"channels": "weighted"}])
    def test_what_is_for_the_decoder_alone(self, tiny: Tiny, setting: dict[str, str]) -> None:
        model = tiny("llava")
        with pytest.raises(UsageError, match=r"the vision is to be compressed .* for the decoder alone"):
            mgaa.compress_(model, prompts(model), parts=PARTS, **setting)

    def test_a_projector_without_linears(self, tiny: Tiny) -> None:
        model = tiny("gemma3")
        with pytest.raises(
            UsageError, match=r"the projector of a gemma3 has no linears to compress: leave `projector`"
        ):
            mgaa.compress_(model, prompts(model), parts=PARTS)

    @pytest.mark.skipif(bool(find_spec("torchvision")), reason="torchvision is there")
    def test_a_processor_that_needs_a_package_which_is_not_there(self, tiny: Tiny, tmp_path: Path) -> None:
        tiny("mistral3").save_pretrained(tmp_path)
        processor("mistral3").save_pretrained(tmp_path)
        with pytest.raises(
            InputError, match=r"needs a package .*[Tt]orchvision.*install it, or take .* out of the folder"
        ):
            mgaa.load(tmp_path)
        for name in ("processor_config.json", "preprocessor_config.json", "chat_template.jinja"):
            (tmp_path / name).unlink(missing_ok=True)
        _, words = mgaa.load(tmp_path)
        assert words is tokenizer_of(words)

    def test_what_a_model_does_between_its_blocks_beside_adding(self, tiny: Tiny) -> None:
        model = unfuse_(tiny("qwen3_vl"))
        decoder = model.model.language_model
        decoder._deepstack_process = lambda hidden, mask, features: hidden * 2
        with pytest.raises(
            InputError, match=r"between model\.language_model\.layers\.0 and the next block the model does"
        ):
            list(stream_statistics(model, prompts(model)))

    def test_a_tower_without_an_entry(self, tiny: Tiny) -> None:
        model = tiny("llava")
        model.config.vision_config.model_type = "eye"
        with pytest.raises(InputError, match=r"vision tower 'eye' has no entry; known are clip_vision_model"):
            stacks_of(model, ["vision"])
