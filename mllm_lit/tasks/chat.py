"""Rows of conversations, as LLaVA, LLaMA-Factory and ms-swift lay them out: each becomes turns and pictures."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from mllm_lit.data.sample import Turn
from mllm_lit.tasks.files import Key, Row, Text, convert, reason

MARKER = "<image>"
ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
Picture = str | dict[str, Any]
"""A path, or ``{bytes, path}`` as tables have it."""


class Said(Row, rename={"role": "from", "text": "value"}):
    """A turn of LLaVA's and LLaMA-Factory's ShareGPT layout."""

    role: str
    text: str


class Message(Row, rename={"text": "content"}):
    """A turn of OpenAI's layout, as LLaMA-Factory and ms-swift read it."""

    role: str
    text: str
    loss: bool | None = None
    tool_calls: Any = None


class Exchange(Row):
    """Two turns of ms-swift's ShareGPT layout."""

    human: str
    assistant: str


class Alpaca(Row):
    """A row of the Alpaca layout."""

    output: Text
    instruction: str | None = None
    input: str | None = None
    history: list[tuple[Text, Text]] | None = None


class Query(Row):
    """A row of ms-swift's query-response layout."""

    query: Text
    response: Text
    history: list[tuple[Text, Text]] | None = None


class Common(Row):
    """What a row of any layout may have beside its turns."""

    id: Key | None = None
    system: str | None = None
    system_prompt: str | None = None
    image: Picture | list[Picture] | None = None
    images: Picture | list[Picture] | None = None


LISTS = ("messages", "conversations", "conversation")
SHAPES: dict[str, tuple[type[Row], str]] = {
    "from": (Said, "turns with 'from' and 'value' (LLaVA; LLaMA-Factory's sharegpt)"),
    "role": (Message, "turns with 'role' and 'content' (LLaMA-Factory's openai format; ms-swift's messages)"),
    "human": (Exchange, "pairs of 'human' and 'assistant' (ms-swift's ShareGPT)"),
}
"""By the key of a turn that tells: its declared type, and what it is called."""
PLAIN: dict[str, tuple[type[Row], str]] = {
    "instruction": (Alpaca, "'instruction' and 'output' (Alpaca, of LLaMA-Factory and ms-swift)"),
    "query": (Query, "'query' and 'response' (ms-swift's query-response)"),
}
"""By the field that tells."""
FIELDS = frozenset([*Common.__struct_fields__, *LISTS, *Alpaca.__struct_fields__, *Query.__struct_fields__])
"""What can be read of a row."""
REFUSED = {
    "videos": "videos are not read",
    "audios": "audio is not read",
    "tools": "calls of tools are not read",
    "objects": "boxes are not put into the text; write them there in the model's own form",
    "chosen": "pairs of a better and a worse answer are not trained on",
    "rejected": "pairs of a better and a worse answer are not trained on",
    "rejected_response": "pairs of a better and a worse answer are not trained on",
    "rejected_messages": "pairs of a better and a worse answer are not trained on",
    "kto_tag": "answers marked as good or bad are not told apart",
}
"""Fields of both libraries that would change what is trained on, and why they cannot be read."""


class Chat(NamedTuple):
    """What a row says.

    Attributes:
        id: Its own, if it has one.
        turns: Without markers of pictures; a system turn first if there is one.
        pictures: As the row has them.
        layout: In which layout it is, and by what that was seen.
        read: Its fields that were read.
        moved: What is said of a picture whose marker is not at the start of the first question; else empty.
    """

    id: str | None
    turns: list[Turn]
    pictures: list[Picture]
    layout: str
    read: frozenset[str]
    moved: str


def read_chat(row: Any) -> Chat:
    """Turns and pictures of a row.

    Raises:
        ValueError: The row is in no layout that is known, or not as its layout is; the message says what was found and
            what was expected.
    """
    row = _typed(row, dict[str, Any])
    for name, why in REFUSED.items():
        if row.get(name) not in (None, "", [], {}, "[]"):
            raise ValueError(f"field {name!r}: {why}")
    if isinstance(row.get("label"), bool):
        raise ValueError(f"field 'label' is true or false: {REFUSED['kto_tag']}")
    common = _typed(row, Common)
    told, said, layout, read = _said(row)
    turns = _in_turn(told, said, _system(common))
    pictures = _pictures(common)
    moved = _check_markers(turns, len(pictures))
    plain = [Turn(turn.role, turn.text.replace(MARKER, "").strip()) for turn in turns]
    for turn in plain:
        if not turn.text:
            raise ValueError(f"a turn of the {turn.role} holds no text beside the {MARKER} marker")
    own = None if common.id is None else str(common.id)
    return Chat(own, plain, pictures, layout, read | frozenset(Common.__struct_fields__), moved)


def _typed(row: Any, kind: Any, place: str = "$") -> Any:
    try:
        return convert(row, kind)
    except msgspec.ValidationError as error:
        told = reason(error)
        raise ValueError(told.replace("$", place, 1) if told.startswith("$") else f"{place}: {told}") from error


def _said(row: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]], str, frozenset[str]]:
    """Name of the field that tells the layout, roles and texts, the layout's name, and the fields that belong to it."""
    lists = [name for name in LISTS if row.get(name) is not None]
    if len(lists) > 1:
        raise ValueError(f"the row has {' and '.join(map(repr, lists))}; which one is meant? Name it by task.columns")
    if lists:
        (name,) = lists
        turns = _typed(row[name], Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)], f"$.{name}")
        key = next((key for key in SHAPES if key in turns[0]), None)
        if key is None:
            wanted = " or ".join(told for _, told in SHAPES.values())
            raise ValueError(f"field {name!r}: the first turn has {sorted(map(str, turns[0]))}, expected {wanted}")
        kind, told = SHAPES[key]
        listed = _typed(turns, list[kind], f"$.{name}")  # type: ignore[valid-type]
        return name, _roles(name, listed), f"{name!r}, {told}", frozenset([name])
    plain = [name for name in PLAIN if row.get(name) is not None]
    if not plain:
        raise ValueError(
            f"the row has the fields {sorted(map(str, row))}, which is no layout that is known; expected one of "
            f"{', '.join([*LISTS, *PLAIN])}. If they are called otherwise, say so by task.columns, as in "
            "{query: question, response: answer}"
        )
    name = plain[0]
    kind, told = PLAIN[name]
    entry = _typed(row, kind)
    if isinstance(entry, Alpaca):
        asked = "\n".join(text for text in (entry.instruction, entry.input) if text)
        last = (asked, entry.output)
    else:
        last = (entry.query, entry.response)
    pairs = [*(entry.history or ()), last]
    said = [turn for ask, answer in pairs for turn in (("user", ask), ("assistant", answer))]
    return name, said, told, frozenset(kind.__struct_fields__)


def _roles(field: str, turns: Sequence[Any]) -> list[tuple[str, str]]:
    said: list[tuple[str, str]] = []
    for number, turn in enumerate(turns):
        if isinstance(turn, Exchange):
            said += [("user", turn.human), ("assistant", turn.assistant)]
            continue
        if turn.role not in ROLES:
            raise ValueError(
                f"$.{field}[{number}] is of {turn.role!r}, expected one of {', '.join(ROLES)} (calls of tools and "
                "their results are not read)"
            )
        if isinstance(turn, Message) and turn.tool_calls:
            raise ValueError(f"$.{field}[{number}] has 'tool_calls', which are not read")
        if isinstance(turn, Message) and turn.loss is False:
            raise ValueError(f"$.{field}[{number}] has 'loss': false, but every answer is trained on; split the row")
        said.append((turn.role, turn.text))
    return said


def _in_turn(field: str, said: list[tuple[str, str]], system: str | None) -> list[Turn]:
    """The turns, if they are a system turn at most, then questions and answers in turn."""
    roles = [role for role, _ in said]
    if said[0][0] == "system":
        first = said[0][1].strip()
        if system and first and first != system:
            raise ValueError(f"there are two system prompts, that of the first turn and {system!r:.80}")
        said, system = said[1:], first or system
    found = [ROLES[role] for role, _ in said]
    if not found or found != ["user", "assistant"] * (len(found) // 2):
        raise ValueError(
            f"field {field!r} has turns from {roles}, expected human and gpt in turn (or user and assistant), the "
            "answer last (a system turn may come first)"
        )
    turns = [Turn("user" if role == "user" else "assistant", text) for role, (_, text) in zip(found, said, strict=True)]
    return [Turn("system", system), *turns] if system else turns


def _system(common: Common) -> str | None:
    given = {text.strip() for text in (common.system, common.system_prompt) if text and text.strip()}
    if len(given) > 1:
        raise ValueError("there are two system prompts, 'system' and 'system_prompt'")
    return next(iter(given), None)


def _pictures(common: Common) -> list[Picture]:
    if common.image and common.images:
        raise ValueError("the row has 'image' and 'images'; expected one of them")
    name = "image" if common.image is not None and common.image != [] else "images"
    given = getattr(common, name)
    pictures: list[Picture] = given if isinstance(given, list) else [] if given is None else [given]
    for picture in pictures:
        if isinstance(picture, dict) and isinstance(picture.get("bytes"), bytes):
            continue
        path = picture if isinstance(picture, str) else picture.get("path")
        if not isinstance(path, str):
            raise ValueError(f"field {name!r} holds an object with {sorted(picture)}, expected a path")
        if not path.strip():
            raise ValueError(f"field {name!r} is blank; leave it out where there is no picture")
        if path.startswith(("http://", "https://", "data:")):
            raise ValueError(
                f"field {name!r} holds {path!r:.60}; pictures are read from files: download it, and give its path"
            )
    return pictures


def _check_markers(turns: Sequence[Turn], pictures: int) -> str:
    """Refuse markers that do not tell the pictures; say what becomes of those that do not stand first."""
    for turn in turns:
        if turn.role != "user" and MARKER in turn.text:
            raise ValueError(f"a turn of the {turn.role} holds {MARKER}; pictures are shown in questions")
    asked = [turn.text for turn in turns if turn.role == "user"]
    markers = sum(text.count(MARKER) for text in asked)
    if markers not in (0, pictures):
        raise ValueError(f"{markers} {MARKER} markers for {pictures} images, expected one for each, or none")
    if markers < pictures:
        return f"pictures without a {MARKER} marker"
    first = asked[0].lstrip()
    while first.startswith(MARKER):
        first = first.removeprefix(MARKER).lstrip()
        markers -= 1
    return f"{MARKER} markers behind a text" if markers else ""
