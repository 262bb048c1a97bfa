"""Conversations: read from rows, and rendered by the chat template of the model that reads them.

    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}]}
    {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hello!"}]}      ShareGPT

A document of a section in the form `chat` is a list of messages; in the form `text`, it is a text. What does not depend on a model (the
check for overlap, zero-shot items, texts to be continued) uses the contents of the messages alone; tokens are those of the rendered
template, with the markers that it writes and no others.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from mgaa.errors import InputError, UsageError
from tasks.data.rows import NullError, shorten, whole_text

Message = dict[str, Any]
"""`role` and `content`, both texts."""
Document = str | list[Message]

FIELDS = ("messages", "conversations")
"""Fields of a row that may hold its conversation, unless the section names another one."""
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}
"""Roles of chat templates by ShareGPT's speakers."""


def fields_of(field: str) -> Sequence[str]:
    """Fields that may hold a conversation, by the setting `field`, which is `text` by default."""
    return FIELDS if field == "text" else (field,)


def conversation_of(row: Any, field: str, place: str) -> list[Message]:
    """Messages of a row, which are in one of its fields or, if it is a list, the row itself.

    Raises:
        NullError: the field is missing or empty.
        InputError: a message is malformed.
    """
    names = fields_of(field)
    if isinstance(row, dict):
        there = ", ".join(map(str, row)) or "nothing"
        name = next((name for name in names if name in row), None)
        if name is None:
            raise NullError(f"has no conversation in {' or '.join(map(repr, names))}; there is: {there}: set `field`")
        row = row[name]
    if row is None or row == []:
        raise NullError("has a conversation without messages")
    if not isinstance(row, list):
        raise InputError(f"{place} has the conversation {shorten(row)}, expected a list of messages.")
    return [_message(each, f"{place}, message {number},") for number, each in enumerate(row, 1)]


def _message(given: Any, place: str) -> Message:
    if isinstance(given, dict) and "from" in given and "role" not in given:
        if given["from"] not in ROLES:
            raise InputError(f"{place} is from {shorten(given['from'])}, expected one of {', '.join(ROLES)}.")
        given = {"role": ROLES[given["from"]], "content": given.get("value")}
    role, said = (given.get("role"), given.get("content")) if isinstance(given, dict) else (None, None)
    if isinstance(said, list) and said and all(isinstance(part, dict) and part.get("type") == "text" for part in said):
        said = "".join(str(part.get("text")) for part in said)
    if not isinstance(role, str) or not role or not isinstance(said, str):
        raise InputError(f"{place} is {shorten(given)}, expected a role and a content, both texts.")
    return {"role": whole_text(role, place), "content": whole_text(said, place)}


def plain_text(document: Document) -> str:
    """Text of a document, for a conversation the contents of its messages."""
    if isinstance(document, str):
        return document
    return "\n\n".join(message["content"] for message in document)


def render_chats(documents: Sequence[Document], tokenizer: Any, section: str) -> tuple[list[str], str | None]:
    """Render the documents of a section as texts; returns them with a description of the rendering, None if they are texts already.

    Raises:
        UsageError: the tokenizer has no chat template.
        InputError: the template refuses a conversation.
    """
    if not documents or isinstance(documents[0], str):
        return [plain_text(document) for document in documents], None
    needed, instead = f"data.{section}.form is 'chat'", f"take data.{section}.form=text"
    template = _template_of(tokenizer, needed, instead)
    texts = [_render_chat(each, tokenizer, f"{number} of data.{section}") for number, each in enumerate(documents, 1)]
    return texts, f"chat template {hashlib.sha256(template.encode()).hexdigest()[:12]} of the tokenizer"


def render_question(text: str, tokenizer: Any) -> str:
    """Render a user's message as a text that ends where the model is to answer.

    Raises:
        UsageError: the tokenizer has no chat template.
        InputError: the template refuses the message.
    """
    _template_of(tokenizer, "evaluation.samples.chats has questions", "set evaluation.samples.chats=[]")
    place = "of evaluation.samples.chats"
    return _render_chat([{"role": "user", "content": text}], tokenizer, place, add_generation_prompt=True)


def _template_of(tokenizer: Any, needed: str, instead: str) -> str:
    """Return the chat template.

    Args:
        needed, instead: what needs it, and what to do without it, for the message.
    """
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError as error:
        raise UsageError(
            f"{needed}, but the tokenizer of the model has no chat template: put the model's chat_template.jinja into its folder, or "
            f"{instead}."
        ) from error
    return template


def _render_chat(conversation: Document, tokenizer: Any, place: str, **options: Any) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(conversation, tokenize=False, **options)
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise InputError(
            f"The chat template of the model refuses conversation {place}, which begins "
            f"{shorten(plain_text(conversation))} ({error}): correct "
            "the conversation, or leave it out."
        ) from error
    return text
