"""Prepare the data alone: read, check and store the three sets of texts, and export them for DVC to version.

    python -m flows.prepare_data [section.key=value ...]

Writes `data/prepared/{calibration,validation,evaluation}.jsonl`, one JSON string per document, with `card.json` and `manifest.json`;
questions about images go to `data/prepared/questions/<section>`.
`flows.compress` reads the same texts through the same cached step.
"""

if __name__ == "__main__":
    from flows.command.cli import main

    raise SystemExit(main("flows.prepare_data:prepare_data", show="flows.prepare_data:show"))

from collections.abc import Sequence
from typing import Any

from prefect import flow

from flows.command.runner import open_run_store
from tasks.cache.artifact import Artifact, Store
from tasks.cache.atomic import replace_folder
from tasks.config.outputs import Output, check_outputs
from tasks.config.parameters import Parameters
from tasks.config.sections.data import Questions, Texts
from tasks.record.run_record import PREPARED
from tasks.steps.encode_questions import encode_questions
from tasks.steps.read_questions import READING as ASKING
from tasks.steps.read_questions import questions_content, read_questions
from tasks.steps.read_texts import READING, SECTIONS, read_texts, source_content
from tasks.steps.tokenize import tokenize


@flow(name="prepare_data", validate_parameters=False)
def prepare_data(parameters: Parameters) -> Artifact:
    """Read the texts and questions of every data section and export them to `data/prepared`."""
    check_outputs(parameters, Output("the folder of the texts", parameters.folder / PREPARED))
    store = open_run_store(parameters, alone=True)
    texts = prepare_texts(parameters, store)
    questions = prepare_questions(parameters, store)
    with replace_folder(parameters.folder / PREPARED) as out:
        store.copy(texts, out)
        if questions is not None:
            store.copy(questions, out / "questions")
    return texts


def prepare_texts(parameters: Parameters, store: Store) -> Artifact:
    """Read the texts of these parameters, as the artifact `texts`."""
    sections: dict[str, Texts] = {name: getattr(parameters.data, name) for name in text_sections(parameters)}
    return read_texts(
        store,
        sections={name: text_arguments(texts) for name, texts in sections.items()},
        content={name: source_content(texts.source) for name, texts in sections.items()},
    )


def text_sections(parameters: Parameters) -> list[str]:
    """Names of the sections that are documents; the calibration may consist of questions instead."""
    return [name for name in SECTIONS if name != "calibration" or parameters.data.calibration.form != "questions"]


def prepare_questions(parameters: Parameters, store: Store) -> Artifact | None:
    """Read the questions of these parameters, as the artifact `questions`: those for calibration and for evaluation; None if there are
    none.
    """
    data = parameters.data
    sections: dict[str, Texts | Questions] = {f"questions.{each.name}": each for each in data.questions}
    for name, given in (("calibration", data.calibration), ("recovery", data.recovery)):
        if given.form == "questions" and (name == "calibration" or parameters.recovery.method != "none"):
            sections = {name: given, **sections}
    if not sections:
        return None
    return read_questions(
        store,
        sections={name: question_arguments(given) for name, given in sections.items()},
        content={name: questions_content(given.source) for name, given in sections.items()},
    )


def prepare_tokens(
    parameters: Parameters,
    store: Store,
    model: Artifact,
    texts: Artifact,
    names: Sequence[str] = SECTIONS,
    questions: Artifact | None = None,
) -> dict[str, Artifact]:
    """Tokenize the sections `names` with the tokenizer or the processor of `model`, as artifacts `tokens`.

    Args:
        questions: result of `prepare_questions`, if there is one already.
    """
    tokens = {}
    for name in names:
        given: Texts = getattr(parameters.data, name)
        if name not in text_sections(parameters):
            asked = questions or prepare_questions(parameters, store)
            assert asked is not None, "the calibration is among them"
            tokens[name] = encode_questions(store, model, asked, section=name)
            continue
        cut: dict[str, Any] = {"length": given.length, "samples": given.samples, "seed": given.seed}
        if (protocol := getattr(given, "protocol", None)) is not None:
            cut |= {"protocol": protocol, "separator": given.separator}
        tokens[name] = tokenize(store, model, texts, section=name, **cut)
    return tokens


def text_arguments(given: Texts) -> dict[str, object]:
    """Parameters of a section that choose its documents; `protocol` only where there is one, since most sections have none."""
    fields = given.model_dump(by_alias=True)
    chosen = {name: value for name, value in fields.items() if name in READING}
    return chosen | ({"protocol": fields["protocol"]} if fields.get("protocol") else {})


def question_arguments(given: Texts | Questions) -> dict[str, object]:
    """Parameters of a section that choose its questions."""
    return {name: value for name, value in given.model_dump(by_alias=True).items() if name in ASKING}


def show(parameters: Parameters) -> None:
    """Print where the texts are."""
    print(f"The texts are in {parameters.folder / PREPARED}")
