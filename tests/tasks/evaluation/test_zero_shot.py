"""The harness runs our tasks and the standard ones on a model in memory and local files, and its numbers are the model's."""

import copy
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from mgaa.errors import InputError, NumericalError, UsageError
from tasks.evaluation import zero_shot
from tests.mgaa.conftest import SINGLE
from tests.mgaa.evaluation.test_causality import READERS, model_of

SHAPE = {
    "vocab_size": 258,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
WORDS = ["the", "array", "matrix", "holds", "value", "and", "copies", "kernel", "sample", "axis"]
OFFICIAL_ITEMS = {
    "arc_challenge": {"question": "Which?", "choices": {"text": ["one", "two"], "label": ["A", "B"]}, "answerKey": "B"},
    "arc_easy": {"question": "Which?", "choices": {"text": ["one", "two"], "label": ["A", "B"]}, "answerKey": "A"},
    "boolq": {"question": "is it so", "passage": "It is so.", "label": 1},
    "hellaswag": {
        "activity_label": "Baking",
        "ctx_a": "Take a bowl.",
        "ctx_b": "then",
        "ctx": "Take a bowl. then",
        "endings": ["mix it.", "[step] sleep.", "run.", "fly."],
        "label": "0",
    },
    "lambada_openai": {"text": "the array holds the array"},
    "mathqa": {"Problem": "1 + 1 ?", "options": "a ) 1 , b ) 2 , c ) 3 , d ) 4 , e ) 5", "correct": "b"},
    "openbookqa": {
        "question_stem": "Fog is",
        "choices": {"text": ["wet", "dry"], "label": ["A", "B"]},
        "answerKey": "A",
    },
    "piqa": {"goal": "Boil water", "sol1": "heat it", "sol2": "freeze it", "label": 0},
    "sciq": {
        "question": "Who?",
        "distractor1": "a",
        "distractor2": "b",
        "distractor3": "c",
        "correct_answer": "d",
        "support": "",
    },
    "winogrande": {"sentence": "Ann beat Bea because _ was fast.", "option1": "Ann", "option2": "Bea", "answer": "1"},
}


@pytest.fixture(scope="module")
def tokenizer():
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {letter: 2 + i for i, letter in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve items of each of our tasks, of different lengths."""
    path = tmp_path_factory.mktemp("items")
    last, following = [], []
    for i in range(12):
        words = [WORDS[(i * j + j) % 10] for j in range(1, 6 + i % 4)]
        last.append({"context": " ".join(words), "target": words[i % 3]})
        choices = [" ".join(WORDS[(i + j + k) % 10] for k in range(2)) for j in range(4)]
        following.append({"context": " ".join(words), "choices": choices, "label": i % 4})
    for name, items in (("last_word", last), ("continuation", following)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def items(folder, task):
    return [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()]


def likelihood(model, tokenizer, context, text):
    """Log-probability of `text` after `<s>` and `context`, and whether it is greedy, one forward pass, float64."""
    before = [0, *tokenizer.encode(context, add_special_tokens=False)]
    after = tokenizer.encode(text, add_special_tokens=False)
    with torch.no_grad():
        logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1].double()
    return logits.log_softmax(-1)[range(len(after)), after].sum().item(), logits.argmax(-1).tolist() == after


def test_last_word_is_the_models_probability_of_the_word(model, tokenizer, folder):
    found = zero_shot.run_tasks(model, tokenizer, ["last_word"], folder=folder)["last_word"]
    likelihoods = [
        likelihood(model, tokenizer, each["context"], " " + each["target"]) for each in items(folder, "last_word")
    ]
    values = [value for value, _ in likelihoods]
    assert found["perplexity"] == pytest.approx(math.exp(-statistics.fmean(values)), rel=1e-5)
    assert found["acc"] == statistics.fmean(greedy for _, greedy in likelihoods)
    deviation = statistics.stdev(values) / math.sqrt(12)
    assert found["perplexity_stderr"] == pytest.approx(found["perplexity"] * deviation, rel=1e-4)


def test_continuation_is_the_most_probable_choice(model, tokenizer, folder):
    found = zero_shot.run_tasks(model, tokenizer, ["continuation"], folder=folder)["continuation"]
    hits, hits_per_character = [], []
    for item in items(folder, "continuation"):
        values = [likelihood(model, tokenizer, item["context"], " " + choice)[0] for choice in item["choices"]]
        normed = [value / len(choice) for value, choice in zip(values, item["choices"], strict=True)]
        hits.append(values.index(max(values)) == item["label"])
        hits_per_character.append(normed.index(max(normed)) == item["label"])
    assert (found["acc"], found["acc_norm"]) == (statistics.fmean(hits), statistics.fmean(hits_per_character))
    assert found["stderr"] == pytest.approx(math.sqrt(found["acc"] * (1 - found["acc"]) / 11))
    assert (found["n"], found["version"], found["truncated"], found["non_finite"]) == (12, 1.0, 0, 0)


def adding(tokenizer, single):
    """The tokenizer, with marks that it adds by itself."""
    from tokenizers.processors import TemplateProcessing

    own = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), bos_token="<s>", eos_token="</s>"
    )
    own.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])
    return own


def by_the_harness(model, tokenizer, files, tmp_path, limit=None):
    """Metrics of the harness's own class and evaluator on the same task objects."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=4, softmax_dtype="float32")
    loaded = zero_shot._load(files, tmp_path)
    found = evaluate(lm=harness, task_dict={"tasks": loaded}, bootstrap_iters=0, limit=limit)["results"]
    return {task: {key: found[task].get(f"{key},none") for key in ("acc", "acc_norm")} for task in files}


def four(i):
    """Choices of different lengths."""
    texts = [" ".join(WORDS[(i + j * k) % 10] for k in range(1 + (i + j) % 3)) for j in range(4)]
    return {"text": texts, "label": list("ABCD")}


VARIED = {
    "arc_easy": lambda i: {"question": f"Which {WORDS[i]}?", "choices": four(i), "answerKey": "ABCD"[i % 4]},
    "openbookqa": lambda i: {"question_stem": f"The {WORDS[i]} is", "choices": four(i), "answerKey": "ABCD"[i % 3]},
    "piqa": lambda i: {
        "goal": f"{WORDS[i]} it",
        "sol1": four(i)["text"][0],
        "sol2": four(i)["text"][1],
        "label": i % 2,
    },
}


@pytest.mark.parametrize("single", ["$A", "<s> $A", "$A </s>"])
def test_acc_and_acc_norm_of_standard_tasks_are_those_of_the_harness(model, tokenizer, tmp_path, single):
    own = adding(tokenizer, single)
    for name, item in VARIED.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(item(i)) for i in range(10)))
    found = zero_shot.run_tasks(model, own, [*VARIED], folder=tmp_path)
    expected = by_the_harness(model, own, zero_shot.item_files([*VARIED], tmp_path), tmp_path)
    assert {task: {key: found[task][key] for key in ("acc", "acc_norm")} for task in VARIED} == expected
    mark = {"$A": "no mark", "<s> $A": "<s>", "$A </s>": "</s>"}[single]
    assert {each["bos_rule"] for each in found.values()} == {f"{mark} with contexts, as the tokenizer itself adds"}


@pytest.mark.parametrize(
    ("add_bos_token", "ids"), [(None, [[], [0]]), (True, [[0], [0]]), (False, [[], []])], ids=["null", "true", "false"]
)
def test_contexts_begin_as_the_tokenizer_does_unless_it_is_said_otherwise(model, tokenizer, add_bos_token, ids):
    from tasks.evaluation.lm_eval_model import InMemoryLM

    for single, before in zip(("$A", "<s> $A"), ids, strict=True):
        own = adding(tokenizer, single)
        ours = InMemoryLM(model, own, batch_size=1, max_length=None, add_bos_token=add_bos_token)
        context, continuation = ours._encode_pair("array", " axis")
        assert context == before + tokenizer.encode("array", add_special_tokens=False)
        assert continuation == tokenizer.encode(" axis", add_special_tokens=False)


def test_the_tasks_made_of_our_texts_begin_with_the_mark_as_perplexities_do(model, tokenizer, folder):
    names = ["last_word", "continuation"]
    plain = zero_shot.run_tasks(model, tokenizer, names, folder=folder)
    assert plain == zero_shot.run_tasks(model, tokenizer, names, folder=folder, add_bos_token=True)
    assert plain["last_word"]["bos_rule"] == "<s> before each context"
    other = zero_shot.run_tasks(model, tokenizer, names, folder=folder, add_bos_token=False)
    assert other["last_word"]["perplexity"] != plain["last_word"]["perplexity"]


def test_a_mark_that_the_tokenizer_lacks_and_a_context_without_a_token_are_refused(model, tokenizer, tmp_path):
    (tmp_path / "piqa.jsonl").write_text(json.dumps(VARIED["piqa"](0)))
    bare = adding(tokenizer, "$A")
    bare.bos_token = None
    with pytest.raises(UsageError, match="add_bos_token is true, but the tokenizer of the model has no beginning mark"):
        zero_shot.run_tasks(model, bare, ["piqa"], folder=tmp_path, add_bos_token=True)
    (tmp_path / "last_word.jsonl").write_text(json.dumps({"context": " ", "target": "the"}))
    with pytest.raises(InputError, match="A context of zero-shot last_word has no token"):
        zero_shot.run_tasks(model, bare, ["last_word"], folder=tmp_path)


SETTINGS = {
    "mistral": {"sliding_window": 12},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 12},
    "gemma3_text": {"head_dim": 8, "sliding_window": 12},
    "phi3": {"pad_token_id": 0},
    "smollm3": {"pad_token_id": None},
    "gpt_oss": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2},
    "opt": {"word_embed_proj_dim": 16, "ffn_dim": 24},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize(("family", "batch_size"), [("llama", 1), ("llama", 64), *((family, 5) for family in SINGLE)])
def test_answers_are_those_of_the_harness(tokenizer, folder, family, batch_size):
    from lm_eval.models.huggingface import HFLM

    from tasks.evaluation.lm_eval_model import InMemoryLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SHAPE | {"num_key_value_heads": 2} | SETTINGS.get(family, {}))
    ours = InMemoryLM(AutoModelForCausalLM.from_config(config).eval(), tokenizer, batch_size=batch_size, max_length=29)
    texts = [(item["context"], " " + choice) for item in items(folder, "continuation") for choice in item["choices"]]
    texts += [("is it so?", " y"), ("is it so?", " n"), ("array", " and the array and the array")]
    requests = [(pair, *ours._encode_pair(*pair)) for pair in texts]
    found = ours._loglikelihood_tokens(requests)
    expected = HFLM._loglikelihood_tokens(ours, requests, disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert ours.truncated > 0


@pytest.mark.parametrize("family", READERS)
def test_a_model_without_a_cache_that_serves_is_scored_in_whole(tokenizer, folder, family):
    """Those with a state, and those whose positions count the padding; the others keep what the cache saves."""
    from lm_eval.models.huggingface import HFLM

    from tasks.evaluation.lm_eval_model import InMemoryLM
    from tasks.evaluation.scoring import in_whole, through_cache

    ours = InMemoryLM(model_of(family, **READERS[family] | {"vocab_size": 258}), tokenizer, batch_size=5, max_length=29)
    texts = [(item["context"], " " + choice) for item in items(folder, "continuation") for choice in item["choices"]]
    requests = [(pair, *ours._encode_pair(*pair)) for pair in texts]
    found = ours._loglikelihood_tokens(requests)
    ours.model.config.use_cache = False  # the cache of xLSTM does not hold the heads of its own default
    expected = HFLM._loglikelihood_tokens(ours, requests, disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert ours._way is (through_cache if family in ("bloom", "bert") else in_whole)


def test_both_ways_give_the_same_on_a_model_that_has_both(model, tokenizer, folder):
    from tasks.evaluation.lm_eval_model import InMemoryLM
    from tasks.evaluation.scoring import in_whole, through_cache

    answers = []
    for way in (through_cache, in_whole):
        ours = InMemoryLM(model, tokenizer, batch_size=5, max_length=60)
        ours._way = way
        texts = [(item["context"], " " + each) for item in items(folder, "continuation") for each in item["choices"]]
        answers.append(ours._loglikelihood_tokens([(pair, *ours._encode_pair(*pair)) for pair in texts]))
    assert [value for value, _ in answers[0]] == pytest.approx([value for value, _ in answers[1]], rel=1e-6)
    assert [greedy for _, greedy in answers[0]] == [greedy for _, greedy in answers[1]]


def test_a_model_that_looks_ahead_has_no_scores(tokenizer, folder):
    with pytest.raises(InputError, match=r"BertLMHeadModel .* looks ahead"):
        zero_shot.run_tasks(model_of("bert", vocab_size=258), tokenizer, ["continuation"], folder=folder)


@pytest.mark.parametrize("task", sorted(zero_shot.OFFICIAL))
def test_every_standard_task_runs_on_a_local_file(model, tokenizer, tmp_path, task):
    lines = [json.dumps(OFFICIAL_ITEMS[task])] * 3
    (tmp_path / f"{task}.jsonl").write_text("\n".join(lines))
    found = zero_shot.run_tasks(model, tokenizer, [task], folder=tmp_path)[task]
    assert found["acc"] in (0.0, 1.0)
    assert (found["n"], found["stderr"]) == (3, 0.0)


def test_a_limit_takes_the_first_items_and_one_item_has_no_standard_error(model, tokenizer, folder):
    found = zero_shot.run_tasks(model, tokenizer, ["last_word"], folder=folder, limit=1)["last_word"]
    assert (found["n"], found["stderr"], found["perplexity_stderr"]) == (1, None, None)


def test_contexts_that_were_cut_are_counted(model, tokenizer, folder):
    found = zero_shot.run_tasks(model, tokenizer, ["last_word", "continuation"], folder=folder, max_length=20)
    assert 0 < found["last_word"]["truncated"] <= 12
    assert 12 < found["continuation"]["truncated"] <= 48


def test_a_continuation_longer_than_the_context_is_refused(model, tokenizer, folder):
    with pytest.raises(InputError, match="continuation has 14 tokens, expected at most 13"):
        zero_shot.run_tasks(model, tokenizer, ["continuation"], folder=folder, max_length=13)


def test_model_and_tokenizer_are_left_as_they_are(model, tokenizer, folder):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    zero_shot.run_tasks(model, tokenizer, ["last_word"], folder=folder, limit=2)
    assert tokenizer.pad_token is None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_weights_that_are_not_finite_are_an_error(model, tokenizer, folder):
    broken = LlamaForCausalLM(model.config)
    torch.nn.init.constant_(broken.lm_head.weight, math.nan)
    with pytest.raises(NumericalError, match="12 of 12 log-likelihoods of last_word are not finite"):
        zero_shot.run_tasks(broken, tokenizer, ["last_word"], folder=folder)


@pytest.mark.parametrize("tasks", [["last_wrod"], ["last_word", "last_word"]])
def test_an_unknown_or_doubled_task_is_refused_with_the_known_ones(model, tokenizer, folder, tasks):
    with pytest.raises(UsageError, match=f"{tasks[0]}.* out of: arc_challenge, .*last_word.*winogrande"):
        zero_shot.run_tasks(model, tokenizer, tasks, folder=folder)


def test_a_missing_file_is_refused_with_those_there(model, tokenizer, folder):
    with pytest.raises(
        InputError, match=r"arc_easy.jsonl, piqa.jsonl are not in .* there is: continuation.jsonl, last_word.jsonl"
    ):
        zero_shot.run_tasks(model, tokenizer, ["arc_easy", "last_word", "piqa"], folder=folder)


@pytest.mark.parametrize(
    ("task", "line"), [("last_word", '{"text": "a"}'), ("mathqa", '{"Problem": "?"}'), ("piqa", "{"), ("sciq", "")]
)
def test_items_of_another_form_are_refused(model, tokenizer, tmp_path, task, line):
    (tmp_path / f"{task}.jsonl").write_text(line)
    with pytest.raises(InputError, match=f"{task}.jsonl do not fit the task {task}"):
        zero_shot.run_tasks(model, tokenizer, [task], folder=tmp_path)


CHOICE = {"context": "the", "choices": ["array", "matrix", "axis"], "label": 1}
HIDDEN = {
    "boolq": {"label": -1},
    "hellaswag": {"label": ""},
    "piqa": {"label": -1},
    "winogrande": {"answer": ""},
    "arc_easy": {"answerKey": ""},
    "mathqa": {"correct": ""},
}
"""How the test splits of the standard tasks hide their labels, and how others might."""


def refused(model, tokenizer, folder, task, given):
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in given))
    with pytest.raises(InputError) as caught:
        zero_shot.run_tasks(model, tokenizer, [task], folder=folder, limit=1)
    return str(caught.value)


@pytest.mark.parametrize("task", sorted(HIDDEN))
def test_hidden_labels_are_counted_and_refused(model, tokenizer, tmp_path, task):
    shown, hidden = OFFICIAL_ITEMS[task], OFFICIAL_ITEMS[task] | HIDDEN[task]
    said = refused(model, tokenizer, tmp_path, task, [hidden] * 3)
    assert f"3 of 3 items in {tmp_path / task}.jsonl do not fit the task {task}; the first, in line 1: " in said
    assert "Take a split whose labels are public" in said
    said = refused(model, tokenizer, tmp_path, task, [shown, shown, hidden])
    assert f"1 of 3 items in {tmp_path / task}.jsonl do not fit the task {task}; the first, in line 3: " in said


@pytest.mark.parametrize("label", [-1, 3, "", None, 1.0, True, [], {"a": 1}, "none of them"])
def test_a_label_that_says_nothing_is_refused_wherever_it_is(model, tokenizer, tmp_path, label):
    said = refused(model, tokenizer, tmp_path, "continuation", [CHOICE | {"label": label}] * 2)
    assert said.startswith("2 of 2 items")
    said = refused(model, tokenizer, tmp_path, "continuation", [CHOICE] * 2 + [CHOICE | {"label": label}])
    assert said.startswith(("1 of 3 items", "3 of 3 items"))  # one 1.0 makes all of a column so


def test_a_list_of_labels_in_one_item_alone_is_refused(model, tokenizer, tmp_path):
    said = refused(model, tokenizer, tmp_path, "continuation", [CHOICE, CHOICE | {"label": [1]}])
    assert "its label is [1], expected one, as in the first item" in said


@pytest.mark.parametrize(
    "change",
    [
        {"choices": ["array", None]},
        {"choices": None},
        {"choices": [1, 2]},
        {"choices": "array"},
        {"choices": ["array"], "label": 0},
        {"choices": [], "label": 0},
        {"context": None},
        {"context": ["the"]},
    ],
)
def test_an_item_without_text_or_choices_is_refused_however_far_behind(model, tokenizer, tmp_path, change):
    said = refused(model, tokenizer, tmp_path, "continuation", [CHOICE] * 999 + [CHOICE | change])
    assert "1 of 1000 items" in said
    assert "the first, in line 1000: " in said


@pytest.mark.parametrize("correct", ["a", "b"])
def test_a_choice_may_be_empty(model, tokenizer, tmp_path, correct):
    """As in MathQA's test split; the harness looks at the first item alone for the blank in front of its choices."""
    first = {"Problem": "1 + 1", "options": "a ) 1 , b ) 2 , c ) 3 , d ) 4 , e ) 5", "correct": "b"}
    second = {**first, "options": "a ) , b ) 2 , c ) 3 , d ) 4 , e ) 5", "correct": correct}
    (tmp_path / "mathqa.jsonl").write_text("".join(json.dumps(item) + "\n" for item in (first, second)))
    assert zero_shot.run_tasks(model, tokenizer, ["mathqa"], folder=tmp_path)["mathqa"]["n"] == 2


def test_a_field_that_one_item_lacks_or_all_do_is_no_text(model, tokenizer, tmp_path):
    other = {"ctx": "the", "target": "array"}
    said = refused(model, tokenizer, tmp_path, "last_word", [other] * 2)
    assert "2 of 2 items" in said
    assert "it has no field `context`; there is: ctx, target" in said
    said = refused(model, tokenizer, tmp_path, "last_word", [{"context": "the", "target": "array"}, other])
    assert "in line 2: the field `context` is null, or missing" in said
    said = refused(model, tokenizer, tmp_path, "last_word", [{"context": "the", "target": ""}])
    assert "its answer is ' ', expected a text" in said


def test_labels_by_text_lists_of_labels_and_unequal_numbers_of_choices_are_scored(model, tokenizer, tmp_path):
    for given in (
        [CHOICE | {"label": "matrix"}, CHOICE | {"label": "axis"}],
        [CHOICE | {"label": [0, 1, 2]}, CHOICE | {"label": [0, 1, 2]}],
        [CHOICE, CHOICE | {"choices": ["array", "matrix"]}],
        [CHOICE | {"choices": ["array", "matrix"], "label": True}],
    ):
        (tmp_path / "continuation.jsonl").write_text("".join(json.dumps(item) + "\n" for item in given))
        found = zero_shot.run_tasks(model, tokenizer, ["continuation"], folder=tmp_path)["continuation"]
        assert found["n"] == len(given)
        assert found["acc"] == 1.0 or given[0]["label"] != [0, 1, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("output_type: loglikelihood_rolling", "output type loglikelihood_rolling, expected one of multiple_choice"),
        (
            "filter_list: [{name: other, filter: [{function: take_first}]}]",
            "has a `filter_list`, which is not run here",
        ),
        ("metric_list: [{metric: f1, aggregation: f1}]", "No standard error is known for the aggregation f1"),
    ],
)
def test_a_task_of_another_kind_is_refused_before_anything_is_scored(
    model, tokenizer, folder, tmp_path, monkeypatch, line, message
):
    own = (zero_shot.DEFINITIONS / "continuation.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(own.replace("task: continuation", "task: mine") + line + "\n")
    (tmp_path / "mine.jsonl").write_text((folder / "continuation.jsonl").read_text())
    monkeypatch.setattr(zero_shot, "DEFINITIONS", tmp_path)
    with pytest.raises(UsageError, match=message):
        zero_shot.run_tasks(model, tokenizer, ["mine"], folder=tmp_path)


def test_a_limit_below_one_is_refused(model, tokenizer, folder):
    with pytest.raises(UsageError, match="limit is 0"):
        zero_shot.run_tasks(model, tokenizer, ["last_word"], folder=folder, limit=0)


def test_no_tasks_are_no_work(model, tokenizer, folder):
    assert zero_shot.run_tasks(model, tokenizer, [], folder=folder) == {}


@pytest.mark.slow
def test_nothing_is_fetched_printed_or_written_outside_and_the_harness_comes_late(model, tokenizer, folder, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "home").mkdir()
    program = f"""
import socket, sys
from pathlib import Path
import tasks.evaluation.zero_shot as zero_shot
assert not {{"lm_eval", "datasets"}} & sys.modules.keys()
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "model")!r})
tokenizer = AutoTokenizer.from_pretrained({str(tmp_path / "model")!r})
def refuse(*words):
    raise AssertionError(f"network: {{words}}")
socket.getaddrinfo = socket.socket.connect = refuse
print("START", file=sys.stderr, flush=True)
zero_shot.run_tasks(model, tokenizer, ["last_word", "continuation"], folder=Path({str(folder)!r}))
"""
    home = {name: str(tmp_path / "home") for name in ("HOME", "HF_HOME", "XDG_CACHE_HOME", "PYTHONDONTWRITEBYTECODE")}
    environment = {**os.environ, **home, "PYTHONPATH": str(Path(zero_shot.__file__).parents[2])}
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, cwd=tmp_path / "home"
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout + ran.stderr.split("START\n")[1] == ""
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []


@pytest.mark.slow
@pytest.mark.skipif("MGAA_EXTERNAL_DATA" not in os.environ, reason="needs the published tasks (MGAA_EXTERNAL_DATA)")
def test_published_items_have_the_accuracies_of_the_harness(tmp_path):
    data, names = Path(os.environ["MGAA_EXTERNAL_DATA"]), ["arc_easy", "openbookqa", "piqa"]
    folder = data / "backbones" / "wiki4m"
    real, its_tokenizer = AutoModelForCausalLM.from_pretrained(folder).float(), AutoTokenizer.from_pretrained(folder)
    found = zero_shot.run_tasks(real, its_tokenizer, names, folder=data / "tasks", limit=100)
    expected = by_the_harness(real, its_tokenizer, zero_shot.item_files(names, data / "tasks"), tmp_path, limit=100)
    assert {task: {key: found[task][key] for key in ("acc", "acc_norm")} for task in names} == expected


@pytest.mark.skipif("MGAA_EXTERNAL_DATA" not in os.environ, reason="needs the published tasks (MGAA_EXTERNAL_DATA)")
@pytest.mark.parametrize("task", sorted(zero_shot.OFFICIAL))
def test_the_published_items_run_on_a_real_checkpoint(task):
    data = Path(os.environ["MGAA_EXTERNAL_DATA"])
    checkpoint = data / "backbones" / "wiki4m"
    real, its_tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    found = zero_shot.run_tasks(real, its_tokenizer, [task], folder=data / "tasks", limit=4)[task]
    assert 0 <= found["acc"] <= 1
    assert found["n"] == 4
