"""Step 9b, ask examples: a vision-language model is trained on questions about images with their answers (`mgaa.recovery.examples`).

Every tenth question is held out, to choose the best state by: the loss on plain text would say nothing about images. Our choice.
"""

from pathlib import Path
from typing import Any

from tasks.artifacts.backbone import backbone_processor
from tasks.artifacts.files import CARD, EXAMPLES, HELD_OUT, read_table, write_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step
from tasks.data.questions import questions_of

SECTION = "recovery"
EVERY = 10


@step(kind="examples")
def ask_examples(out: Path, store: Store, backbone: Artifact, questions: Artifact) -> None:
    """Nine in ten questions to train on, and the others to validate on."""
    from mgaa.inputs.prompts import encode
    from mgaa.recovery.examples import from_prompts

    config, processor = backbone_processor(store, backbone)
    asked = questions_of(store, questions, SECTION)
    parts: dict[str, list[Any]] = {
        HELD_OUT: asked[::EVERY],
        EXAMPLES: [each for index, each in enumerate(asked) if index % EVERY],
    }
    made = {name: from_prompts(encode(part, processor, config)) for name, part in parts.items()}
    for name, examples in made.items():
        examples.save(out / name)
    card = {
        "examples": len(made[EXAMPLES]),
        "held_out": len(made[HELD_OUT]),
        "tokens": len(made[EXAMPLES].ids),
        "scored": made[EXAMPLES].scored,
        "data_digest": read_table(store, questions, CARD)["sections"][SECTION]["data_digest"],
        "token_digest": made[EXAMPLES].digest,
    }
    write_table(out / CARD, card)
