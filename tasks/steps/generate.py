"""Step 10d, generate: continuations of a few evaluation texts, so that people see what the numbers mean.

The texts are drawn evenly from those that are long enough; a prompt is the beginning of one, and its own continuation is kept along with
the model's. Decoding is greedy, so the dense and the compressed model differ by their weights alone.
"""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgaa.errors import InputError
from tasks.artifacts.files import SAMPLES, texts_of, write_table
from tasks.artifacts.models import load_artifact
from tasks.cache.artifact import Artifact, Store
from tasks.cache.manifest import digest
from tasks.cache.step import step

CHARACTERS = 4
"""Of a token, about: texts with fewer are taken only where there are no longer ones."""
LONGEST = 40
"""Characters that a token may have, so that only the beginning of a long text is tokenized."""


@step(kind="samples")
def generate(
    out: Path, store: Store, model: Artifact, texts: Artifact, *, number: int, prompt: int, tokens: int, device: str
) -> None:
    """Let a backbone or a checkpoint go on with evaluation texts.

    Args:
        model: artifact `backbone`, `model` or `checkpoint`.
        number: of texts.
        prompt, tokens: of the beginning that is given and of the continuation, at most.

    Raises:
        InputError: no text has two tokens.
        NumericalError: a logit is not finite.
    """
    from mgaa.evaluation.continuation import generate_continuations
    from mgaa.inputs.tokens import document_marks
    from mgaa.models.processors import tokenizer_of

    loaded, processor = load_artifact(store, model, device)
    tokenizer = tokenizer_of(processor)
    before, _, rule = document_marks(tokenizer)
    positions = getattr(loaded.config.get_text_config(), "max_position_embeddings", None) or prompt + tokens
    documents = texts_of(store, texts, "evaluation")
    given: list[tuple[int, list[int], list[int]]] = []
    for index in choose_texts(documents, number, CHARACTERS * (prompt + tokens)):
        beginning = documents[index][: LONGEST * (prompt + tokens)]
        ids = tokenizer(beginning, add_special_tokens=False, verbose=False)["input_ids"]
        if length := min(prompt, positions // 2, len(ids) // 2):
            given.append((index, ids[:length], ids[length : length + tokens]))
    if not given:
        raise InputError(
            "No evaluation text has two tokens, so none can be gone on with: give longer texts, or set evaluation.samples.number=0"
        )
    said = generate_continuations(loaded, tokenizer, [[*before, *ids] for _, ids, _ in given], max_new_tokens=tokens)
    samples = [
        {
            "document": index,
            **{
                name: tokenizer.decode(part, skip_special_tokens=True)
                for name, part in (("prompt", ids), ("reference", rest), ("text", continued))
            },
            "ids": continued,
        }
        for (index, ids, rest), continued in zip(given, said, strict=True)
    ]
    write_table(
        out / SAMPLES, {"samples": samples, "card": sample_card(loaded, documents, rule, prompt=prompt, tokens=tokens)}
    )


def sample_card(model: Any, documents: Sequence[str], rule: str, *, prompt: int, tokens: int) -> dict[str, Any]:
    """How the continuations were made."""
    return {
        "decoding": "greedy",
        "prompt_tokens": prompt,
        "max_new_tokens": tokens,
        "bos_rule": rule,
        "dtype": str(model.dtype).removeprefix("torch."),
        "data_digest": digest(documents),
        "transformers": importlib.metadata.version("transformers"),
    }


def choose_texts(documents: Sequence[str], number: int, characters: int) -> list[int]:
    """Indices of `number` texts, evenly among those of so many characters, or among all where those are too few."""
    long = [index for index, text in enumerate(documents) if len(text) >= characters]
    among = long if len(long) >= number else [*range(len(documents))]
    count = min(number, len(among))
    return [among[place * len(among) // count] for place in range(count)]
