"""From the rows of a source to questions: lists taken apart, columns renamed and derived, every one checked."""

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pvcbench.tasks import files
from pvcbench.tasks.base import Turn
from pvcbench.tasks.qa.derived import DERIVED, value_of
from pvcbench.tasks.qa.description import PLACE, Description
from pvcbench.tasks.qa.finding import json_of
from pvcbench.tasks.qa.scorers.registry import METRICS
from pvcbench.tasks.qa.sources import text_of

LETTERS = "ABCDEF"


@dataclass(frozen=True)
class Item:
    """One question with everything that its prompt and its score read."""

    id: str
    head: str  # the prompt before the context
    context: str
    question: str  # the prompt after it
    answers: tuple[str, ...]
    system: str = ""
    prefix: str = ""  # with which the answer begins
    needle: str = ""
    cluster: str = ""
    stratum: str = ""
    buckets: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, object] = field(default_factory=dict)  # what its metrics read beside the answers
    messages: tuple[Mapping, ...] = ()
    conversation: str = ""  # the name of the conversation that it is a turn of
    turns: tuple[Turn, ...] = ()  # all turns of that
    turn: int = 0  # which of them it is, counted from 1

    @property
    def text_sha256(self) -> str:
        """A hash of the context and what stands before it, which questions may share; empty without one."""
        return hashlib.sha256(f"{self.head}{self.context}".encode()).hexdigest()[:16] if self.context else ""


def items_of(one: Description, rows: Sequence[Mapping]) -> tuple[list[Item], list[str]]:
    """The questions of a data set, each with a name of its own, and what is wrong with rows that are none."""
    if one.rows.turns is not None:
        return turns_of(one, rows)
    made, wrong, seen = [], [], set()
    for place, row in exploded(one, rows):
        if not kept(one, row):
            continue
        try:
            item = item_of(one, row, place)
        except files.Refused as error:
            wrong.append(f"row {place}: {error}")
            continue
        if item.id in seen:
            item = Item(**{**vars(item), "id": f"{item.id}#{place}"})
        seen.add(item.id)
        made.append(item)
    return made, wrong


def turns_of(one: Description, rows: Sequence[Mapping]) -> tuple[list[Item], list[str]]:
    """The turns of a data set's conversations, each a question, and what is wrong with rows that are none."""
    made, wrong, seen = [], [], set()
    for place, row in enumerate(rows, start=1):
        if not kept(one, row):
            continue
        try:
            items = conversation_of(one, row, str(place))
        except files.Refused as error:
            wrong.append(f"row {place}: {error}")
            continue
        name = items[0].conversation
        name = f"{name}#{place}" if name in seen else name
        seen.add(name)
        made += [replace(item, id=f"{name}-{item.turn}", conversation=name) for item in items]
    return made, wrong


def conversation_of(one: Description, row: Mapping, place: str) -> list[Item]:
    """A row's turns: the first is asked behind the context by `prompt.text`, the later ones by `prompt.next`."""
    column = one.rows.turns
    found = value_of(row, column)
    if not isinstance(found, list | tuple) or not found or not all(isinstance(turn, Mapping) for turn in found):
        raise files.Refused(f"{column}: wanted a list of objects, one for each turn")
    rest = {key: value for key, value in row.items() if key != column}
    items = [item_of(one, {**rest, **turn}, place, number > 0) for number, turn in enumerate(found)]
    first, golden = items[0], [text_of(value_of({**rest, **turn}, one.columns["answers"])).strip() for turn in found]
    turns = tuple(Turn(item.question, answer) for item, answer in zip(items, golden, strict=True))
    shared = {"head": first.head, "cluster": first.cluster or first.id, "conversation": first.id, "turns": turns}
    return [replace(item, turn=number, **shared) for number, item in enumerate(items, start=1)]


def kept(one: Description, row: Mapping) -> bool:
    """Whether a row has the values that the description keeps."""
    return all(text_of(row.get(name)) in _values(values) for name, values in one.rows.keep.items())


def _values(values: object) -> list[str]:
    return [text_of(value) for value in (values if isinstance(values, list) else [values])]


def exploded(one: Description, rows: Sequence[Mapping]) -> Iterator[tuple[str, dict]]:
    """Every row with its place, counted from one; a row whose columns hold lists becomes several."""
    columns = one.rows.explode
    for number, row in enumerate(rows, start=1):
        if not columns:
            yield str(number), dict(row)
            continue
        lists = [listed(row.get(column), one.rows.parse) for column in columns]
        if any(found is None for found in lists):
            yield str(number), dict(row)  # such as LooGLE's `none`: a row that has no questions is one itself
            continue
        for place, values in enumerate(zip(*lists, strict=False), start=1):
            rest = {key: value for key, value in row.items() if key not in columns}
            for column, value in zip(columns, values, strict=True):
                rest |= value if isinstance(value, Mapping) else {column: value}
            yield f"{number}-{place}", {**rest, "turn": str(place)}


def listed(value: object, parse: str | None) -> list | None:
    """The list that a column holds, or that the text of a Python list in it stands for."""
    if parse is not None and isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return list(value) if isinstance(value, list | tuple) else None


def item_of(one: Description, row: Mapping, place: str, later: bool = False) -> Item:
    """One row as a question, or as a later turn's of a conversation; raises `Refused` for what is missing in it."""
    for name in one.rows.derive:
        row = {**row, **DERIVED[name](row)}
    options = choices_of(one, row)
    values = values_of(one, row, options)
    head, tail = (filled(part, values) for part in one.parts)
    tail = filled(one.prompt.next, values).strip() if later else tail
    context = values.get("context", "") if one.has_context else ""
    messages = messages_of(row, one.prompt.messages) if one.prompt.messages else ()
    if messages:
        context = "".join(f"{turn['role']}: {turn['content']}\n\n" for turn in messages[:-1])
        tail = str(messages[-1]["content"])
    if not context and not tail.strip():
        raise files.Refused("found nothing in its prompt, wanted a text to ask about")
    needle = values.get("needle", "")
    if needle and needle not in context:
        raise files.Refused(f"needle: found {files.shown(needle)}, wanted a passage that occurs in the context")
    read = {column for name in one.metrics for column in METRICS[name].reads}
    return Item(
        id=values.get("id") or place,
        head=head,
        context=context,
        question=tail,
        answers=answers_of(one, row, options),
        system=filled(one.prompt.system or "", values),
        prefix=filled(one.prompt.answer_prefix, values),
        needle=needle,
        cluster=cluster_of(one, row, context),
        stratum=text_of(value_of(row, one.strata)) if one.strata else "",
        buckets={column: text_of(value_of(row, column)) for column in one.buckets},
        given={column: values[column] if column in values else text_of(value_of(row, column)) for column in read},
        messages=messages,
    )


def values_of(one: Description, row: Mapping, options: Sequence[str]) -> dict[str, str]:
    """What fills the places of the prompt: columns under their own names and those of the description, and choices."""
    values = {name: text_of(value_of(row, column)) for name, column in one.columns.items() if name != "answers"}
    values |= {name: text_of(row[name]) for name in one.read if name not in values and name in row}
    values |= {LETTERS[number]: text for number, text in enumerate(options)}
    missing = [name for name in one.read if name not in values]
    if missing:
        raise files.Refused(f"{missing[0]}: no column fills it; the row has {', '.join(map(str, row))}")
    return {name: value.strip() for name, value in values.items()} if one.prompt.strip else values


def filled(text: str, values: Mapping[str, str]) -> str:
    """A prompt's text with the values in their places, once over: what a value holds is never a place."""
    return PLACE.sub(lambda found: f"{{{found[1]}}}" if found[1] else values.get(found[2], found[0]), text)


def choices_of(one: Description, row: Mapping) -> list[str]:
    """The texts of the choices."""
    if one.choices is None:
        return []
    if isinstance(one.choices.columns, list):
        return [text_of(value_of(row, column)) for column in one.choices.columns]
    found = value_of(row, one.choices.columns)
    if not isinstance(found, list | tuple) or not 2 <= len(found) <= len(LETTERS):
        raise files.Refused(f"{one.choices.columns}: found {files.shown(text_of(found))}, wanted a list of choices")
    return [text_of(choice) for choice in found]


def answers_of(one: Description, row: Mapping, options: Sequence[str]) -> tuple[str, ...]:
    """The gold answers; of a question with choices the right letter, then its text."""
    value = value_of(row, one.columns["answers"])
    found = [text_of(each) for each in value] if isinstance(value, list | tuple) else [text_of(value)]
    if one.rows.answer_after is not None:
        found = [each.rpartition(one.rows.answer_after)[2].strip() for each in found]
    found = [each for each in dict.fromkeys(found) if each.strip()] if not _ordered(one) else found
    if not found:
        raise files.Refused(f"{one.columns['answers']}: found {json_of(value)}, wanted an answer")
    if not options:
        return tuple(found)
    kind, gold = one.choices.gold, found[0].strip()
    if kind == "text":
        texts = [option.strip() for option in options]
        number = texts.index(gold) if gold in texts else -1
    else:
        number = LETTERS.find(gold) if kind == "letter" and len(gold) == 1 else int(gold) if gold.isdigit() else -1
    if not 0 <= number < len(options):
        raise files.Refused(f"{one.columns['answers']}: found {files.shown(gold)}, wanted the {kind} of a choice")
    return LETTERS[number], options[number]


def _ordered(one: Description) -> bool:
    """Whether the answers are a list of values in order, in which one may stand twice."""
    return "leading_values" in one.metrics


def cluster_of(one: Description, row: Mapping, context: str) -> str:
    """What samples count as one: those of a context, unless the description names a column."""
    if one.group_by != "context":
        return text_of(value_of(row, one.group_by))
    return hashlib.sha256(context.encode()).hexdigest()[:16] if context else ""


def messages_of(row: Mapping, column: str) -> tuple[dict, ...]:
    """A conversation; a text is read as JSON."""
    found = value_of(row, column)
    try:
        found = json.loads(found) if isinstance(found, str) else found
    except ValueError:
        found = None
    right = isinstance(found, list) and len(found) > 1 and all(isinstance(turn, Mapping) for turn in found)
    if not right or not all({"role", "content"} <= set(turn) for turn in found) or found[-1]["role"] != "user":
        raise files.Refused(f"{column}: wanted messages with role and content, the last of them the user's")
    return tuple({"role": str(turn["role"]), "content": str(turn["content"])} for turn in found)
