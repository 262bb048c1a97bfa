"""Which items a zero-shot task can score: every one is looked at before the model is asked anything.

The harness scores whatever it is given. A label that is hidden (-1, an empty text) or is none of the choices counts as a wrong answer, a
null as the text `None`, and where no item has the field that a task reads, the name of the field is the prompt: the accuracy is then 0.000,
or that of another task. Other items end in a traceback, after those before them were scored. So each is asked here for all that the
harness will ask of it: its prompt, its choices, which of them is right.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError, Undefined, UndefinedError

from mgaa.errors import InputError, UsageError
from tasks.data.files import decode_text, read_content
from tasks.data.questions import read_question_file
from tasks.data.row_formats import read_rows, row_of
from tasks.data.rows import whole_text

_MISFITS = (
    *(TemplateError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError),
    *(SyntaxError, StopIteration),
)
"""What templates and preprocessing raise at items of another form."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""How JSON spells half of a character."""

_MANY = 100
"""Items that are looked for one by one, at most, where they keep the others from being read."""

_OUTPUTS = ("multiple_choice", "loglikelihood", "generate_until")
"""The kinds of tasks that are run (`output_type`)."""


class _Null(StrictUndefined):
    """A null in an item: an error wherever a template or a function makes use of it."""

    __slots__ = ()
    __repr__ = StrictUndefined._fail_with_undefined_error


def load_task(name: str, path: Path, load: Callable[[Path], Any]) -> Any:
    """A task of the harness with the items of a file, all of which it can score.

    Args:
        load: makes the task with the items of a file.

    Raises:
        UsageError: the task has no number for each item that could be summed up here.
        InputError: the file cannot be read or has no item, or items cannot be scored; the message counts them.
    """
    from datasets.exceptions import DatasetsError

    rows, cause = _rows(name, path), None
    try:
        task = load(path)
        _check_kind(name, task)
        wrong = {index: each for index, item in enumerate(task.eval_docs) if (each := find_problem(task, item))}
        if not wrong:
            return task
    except (*_MISFITS, DatasetsError) as error:
        cause = error
        with tempfile.TemporaryDirectory() as scratch:
            wrong = dict(islice(_find_misfits(load, rows, 0, Path(scratch)), _MANY))
    count = f"{'at least ' if len(wrong) == _MANY and cause else ''}{len(wrong) or len(rows)} of {len(rows)}"
    first = next(iter(wrong), 0)
    how = f"the first, in line {rows[first][0]}: {wrong[first]}" if wrong else f"they differ in form: {_root(cause)}"
    raise InputError(
        f"{count} items in {path} do not fit the task {name}; {how}. Take a split whose labels are public (validation, where those of test "
        "are hidden), use the fields of the task's data set, or leave these items out."
    ) from cause


def _find_misfits(
    load: Callable[[Path], Any], rows: Sequence[tuple[int, dict[str, Any]]], start: int, scratch: Path
) -> Iterator[tuple[int, str]]:
    """Which items the task does not take, and why, where it takes none as they are together: halves are tried, and theirs."""
    from datasets.exceptions import DatasetsError

    path = scratch / f"{start}-{start + len(rows)}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for _, row in rows), encoding="utf-8")
    try:
        task = load(path)
        found = [find_problem(task, item) for item in task.eval_docs]
    except (*_MISFITS, DatasetsError) as error:
        if len(rows) == 1:
            yield start, _describe_error(error)
            return
        half = len(rows) // 2
        yield from _find_misfits(load, rows[:half], start, scratch)
        yield from _find_misfits(load, rows[half:], start + half, scratch)
    else:
        yield from ((start + index, each) for index, each in enumerate(found) if each)


def _rows(name: str, path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The items of a file with their lines; each has every field that any item has."""
    found = [(number, _parse_line(line)) for number, line in lines_of(path)]
    wrong = [(number, row) for number, row in found if not isinstance(row, dict)]
    if wrong or not found:
        how = f"; the first, in line {wrong[0][0]}, is {wrong[0][1]!r}" if wrong else ""
        raise InputError(
            f"{len(wrong)} of {len(found)} items in {path} do not fit the task {name}{how}: expected at least one, each a JSON object on a "
            "line of its own, with the fields of the task's data set."
        )
    fields = dict.fromkeys(field for _, row in found for field in row)
    return [(number, {field: row.get(field) for field in fields}) for number, row in found]


def lines_of(path: Path) -> list[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers.

    Raises:
        InputError: the file is missing or no text.
    """
    lines = decode_text(path, read_content(path)).split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def check_texts(path: Path) -> None:
    """Refuse by line a text that no tokenizer takes, anywhere in an item."""
    for number, line in lines_of(path):
        if _SURROGATE.search(line):
            place = f"Line {number} of {path}"
            whole_text(json.dumps(row_of(line, place), ensure_ascii=False), place)


def check_images(name: str, path: Path) -> None:
    """Refuse items with images by line, before the harness, which does not know lines, reads them."""
    records, given = read_question_file(path), read_rows(path).numbered
    without = [number for number, row in given if "choices" not in row]
    if without:
        raise InputError(
            f"{len(without)} of {len(given)} items in {path} do not fit the task {name}. Line {without[0]} of {path} has no `choices`, "
            "which the task asks for: give a list."
        )
    if all(record["image"] is None for record in records):
        raise InputError(
            f"The items in {path} have 0 images, expected at least 1 for the task {name}: name them in `image`."
        )


def _parse_line(line: str) -> Any:
    """A line as JSON, or what is wrong with it."""
    try:
        return json.loads(line, parse_constant=_refuse)
    except ValueError as error:
        return error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _check_kind(name: str, task: Any) -> None:
    if task.OUTPUT_TYPE not in _OUTPUTS:
        raise UsageError(
            f"The task {name} has the output type {task.OUTPUT_TYPE}, expected one of {', '.join(_OUTPUTS)}: change its file."
        )
    if task.config.filter_list:
        raise UsageError(f"The task {name} has a `filter_list`, which is not run here: leave it out of its file.")


def _root(error: BaseException | None) -> str:
    """The first error of a chain: that of `datasets` itself does not say what went wrong."""
    while error is not None and (before := error.__cause__ or error.__context__):
        error = before
    return "" if error is None else _describe_error(error)


def find_problem(task: Any, item: Mapping[str, Any]) -> str | None:
    """Why a task of the harness cannot score an item, in words; None where it can.

    Args:
        item: one of its documents, as its preprocessing leaves them.
    """
    images = task.config.doc_to_image or ()
    given = {name: value if name in images else _strict(value, name) for name, value in item.items()}
    try:
        return _missing(task) or _unfit(task, given)
    except _MISFITS as error:
        return _describe_error(error)


def _describe_error(error: BaseException) -> str:
    """The error at an item: its kind, and its first line."""
    told = str(error).strip().partition(chr(10))[0]
    return told if isinstance(error, UndefinedError) else f"{type(error).__name__}: {told}"


def _strict(value: Any, name: str) -> Any:
    """A value of an item, in which a null is an error once it is used."""
    if value is None:
        return _Null(hint=f"the field `{name}` is null, or missing")
    if isinstance(value, list):
        return [_strict(each, name) for each in value]
    if isinstance(value, dict):
        return {key: _strict(each, f"{name}.{key}") for key, each in value.items()}
    return value


def _missing(task: Any) -> str | None:
    """A field that the task reads by its name and that no item has: the harness would take the name for a text."""
    for reader in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        name = getattr(task.config, reader)
        if isinstance(name, str) and name.isidentifier() and name not in task.features:
            return f"it has no field `{name}`; there is: {', '.join(task.features)}"
    return None


def _unfit(task: Any, item: dict[str, Any]) -> str | None:
    text, target = task.doc_to_text(item), task.doc_to_target(item)
    choices = None if task.config.doc_to_choice is None else task.doc_to_choice(item)
    _refuse_null(text, target, choices)
    if choices is None:
        return _no_text(text, "prompt", empty=True) or _no_answer(target, several=bool(task.multiple_target))
    found = _no_choices(choices)
    if found or not task.multiple_input:
        return found or _no_text(text, "prompt", empty=True) or _no_label(target, choices, task.multiple_target)
    return _no_text(target, "continuation") or _no_label(text, choices, 0)


def _refuse_null(*values: Any) -> None:
    """Raise where a null is a prompt, a choice or a label."""
    for value in values:
        if isinstance(value, Undefined):
            str(value)
        elif isinstance(value, list):
            _refuse_null(*value)


def _no_text(value: Any, what: str, *, empty: bool = False) -> str | None:
    if not isinstance(value, str) or not (empty or value.strip()):
        return f"its {what} is {value!r}, expected a text"
    return None


def _no_answer(target: Any, *, several: bool) -> str | None:
    """Of a task without choices: the target is a text, or where the first item has several, a list of them."""
    if not several:
        return _no_text(target, "answer")
    answers = target if isinstance(target, list) else [target]
    if not answers:
        return "it has 0 answers, expected at least 1"
    return next(filter(None, (_no_text(answer, "answer") for answer in answers)), None)


def _no_choices(choices: Any) -> str | None:
    """A choice may be empty, as in 62 items of MathQA's test split: the harness scores it, and so do published numbers."""
    if not isinstance(choices, list) or not all(isinstance(each, str) for each in choices):
        return f"its choices are {choices!r}, expected a list of texts"
    if len(choices) < 2:
        return f"it has {len(choices)} choices, expected at least 2"
    return None


def _no_label(label: Any, choices: Sequence[str], several: int) -> str | None:
    """Of a task with choices: the label says which is right, by index or by text; or a list of them does."""
    if isinstance(label, list) != bool(several):
        return f"its label is {label!r}, expected {'a list' if several else 'one'}, as in the first item"
    labels = label if isinstance(label, list) else [label]
    if not labels:
        return "its list of labels is empty, expected at least one"
    for each in labels:
        if not _is_label_of(each, choices):
            return f"its label is {each!r}, expected a whole number from 0 to {len(choices) - 1} or one of the choices"
    return None


def _is_label_of(label: Any, choices: Sequence[str]) -> bool:
    """Whether a label names the right choice; true and false do so among two."""
    if isinstance(label, bool):
        return len(choices) == 2
    if isinstance(label, str):
        return label in choices
    return isinstance(label, int) and 0 <= label < len(choices)
