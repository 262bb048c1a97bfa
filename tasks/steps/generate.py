"""Step 10d, generate: continuations of a few evaluation texts, so that people see what the numbers mean.

The texts are drawn evenly from those that are long enough; a prompt is the beginning of one, and its own continuation is kept along with
the model's. Prompts of the user's own are gone on with as well: texts as they are, and questions through the model's chat template.
Decoding is greedy, so the dense and the compressed model differ by their weights alone.
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
from tasks.data.chats import render_question

CHARACTERS = 4
"""Of a token, about: texts with fewer are taken only where there are no longer ones."""
LONGEST = 40
"""Characters that a token may have, so that only the beginning of a long text is tokenized."""


@step(kind="samples")
def generate(
    out: Path,
    store: Store,
    model: Artifact,
    texts: Artifact,
    *,
    number: int,
    prompt: int,
    tokens: int,
    prompts: list[str],
    chats: list[str],
    device: str,
) -> None:
    """Let a backbone or a checkpoint go on with evaluation texts and with prompts.

    Args:
        model: artifact `backbone`, `model` or `checkpoint`.
        number: of texts.
        prompt, tokens: of the beginning that is given and of the continuation, at most.
        prompts, chats: texts to go on with, and questions to answer.

    Raises:
        UsageError: there are chats, and the tokenizer has no chat template.
        InputError: no text has two tokens.
        NumericalError: a logit is not finite.
    """
    from mgaa.evaluation.continuation import generate_continuations
    from mgaa.inputs.tokens import document_marks
    from mgaa.models.processors import tokenizer_of

    loaded, processor = load_artifact(store, model, device)
    tokenizer = tokenizer_of(processor)
    before, _, rule = document_marks(tokenizer)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def decode(ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(ids, skip_special_tokens=True)
        return text

    positions = getattr(loaded.config.get_text_config(), "max_position_embeddings", None) or prompt + tokens
    documents = texts_of(store, texts, "evaluation")
    asked = [({"form": "text", "prompt": text}, [*before, *encode(text)]) for text in prompts]
    asked += [({"form": "chat", "prompt": text}, encode(render_question(text, tokenizer))) for text in chats]
    given: list[tuple[dict[str, Any], list[int]]] = []
    for index in choose_texts(documents, number, CHARACTERS * (prompt + tokens)):
        ids = encode(documents[index][: LONGEST * (prompt + tokens)])
        if length := min(prompt, positions // 2, len(ids) // 2):
            parts = {"prompt": decode(ids[:length]), "reference": decode(ids[length : length + tokens])}
            given.append(({"document": index, **parts}, [*before, *ids[:length]]))
    if number and not given:
        raise InputError(
            "No evaluation text has two tokens, so none can be gone on with: give longer texts, or set evaluation.samples.number=0"
        )
    given = asked + given
    said = generate_continuations(loaded, tokenizer, [ids for _, ids in given], max_new_tokens=tokens)
    samples = [{**about, "text": decode(ids), "ids": ids} for (about, _), ids in zip(given, said, strict=True)]
    card = sample_card(loaded, documents, rule, prompt=prompt, tokens=tokens)
    write_table(out / SAMPLES, {"samples": samples, "card": card})


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
