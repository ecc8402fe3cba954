"""A user's lines: one strict schema, checked for the whole file; messages have line, field, found and wanted."""

import json

import datasets
import pytest

from pvcbench.config import building, compose
from pvcbench.errors import UserError
from pvcbench.models.random_weights import byte_tokenizer
from pvcbench.tasks.jsonl import Jsonl
from pvcbench.tasks.needle.task import Needle
from pvcbench.tasks.perplexity import Perplexity
from pvcbench.tasks.prompts import Prompter

OK = {"context": "The capital of Freedonia is Marxville. " * 3, "question": "What is it?", "answers": ["Marxville"]}


def task_of(tmp_path, *lines, **settings):
    """A task of these lines: objects, or text as it stands in the file."""
    path = tmp_path / "mine.jsonl"
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return Jsonl(str(path), **settings)


def said(task):
    with pytest.raises(UserError) as caught:
        task.validate()
    return str(caught.value)


@pytest.mark.parametrize("key", ["context", "question", "answers", "metric", "id", "cluster", "needle"])
def test_null_is_never_a_value(tmp_path, key):
    message = said(task_of(tmp_path, OK, OK | {key: None}))
    assert message.startswith(f"{tmp_path / 'mine.jsonl'}, line 2: {key}: found null, wanted ") and "\n" not in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"answers": []}, "answers: found [], wanted texts or numbers that are not empty"),
        ({"answers": [None]}, "answers: found [null], wanted"),
        ({"answers": [""]}, 'answers: found [""], wanted'),
        ({"answers": " \n"}, "answers: found only white space, wanted"),
        ({"answers": ["a", "\u200b"]}, "answers: found '\\u200b', wanted characters that can be seen"),
        ({"answers": "\ufeff\u00ad", "metric": "f1"}, "answers: found '\\ufeff\\xad', wanted characters"),
        ({"answers": [["a"]]}, 'answers: found [["a"]], wanted'),
        ({"answers": {"a": 1}}, "answers: found"),
        ({"answers": {"text": [], "answer_start": []}}, "answers: found"),
        ({"answers": {"text": ["a"], "answer_start": [1], "more": 1}}, "answers: found"),
        ({"answers": True}, "answers: found true, wanted"),
        ({"answers": "?!", "metric": "f1"}, 'answers: found "?!", wanted words, which metric f1 compares'),
        ({"context": 5}, "context: found the number 5, wanted text"),
        ({"question": ["a"]}, 'question: found ["a"], wanted text'),
        ({"needle": 5}, "needle: found the number 5, wanted a passage of the context"),
        ({"needle": ""}, "needle: found empty text, wanted"),
        ({"needle": "not there"}, 'needle: found "not there", wanted a passage that occurs in the context'),
        ({"metric": "contain"}, 'metric: found "contain", wanted contains, contains_all, exact, f1'),
        ({"cluster": ""}, "cluster: found empty text, wanted"),
        ({"id": True}, "id: found true, wanted"),
        ({"metrics": "f1"}, '"metrics": unknown key; did you mean metric?'),
        ({"Needle": "x"}, '"Needle": unknown key; did you mean needle?'),
        ({"Answers": "x"}, '"Answers": unknown key; did you mean answers?'),
        ({"zzz": 1}, '"zzz": unknown key; leave it out; known: context, question'),
        ({"context": " ", "question": ""}, "context: found nothing in it nor in question"),
    ],
)
def test_each_fault_names_line_field_found_and_wanted(tmp_path, change, expected):
    message = said(task_of(tmp_path, OK, OK | change))
    assert f"mine.jsonl, line 2: {expected}" in message and "\n" not in message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "line 2: is not JSON: "),
        ("5", "line 2: found the number 5, wanted a JSON object"),
        ('{"context": "a", "question": "b"}', "line 2: answers: missing, wanted"),
        ('{"context": "a", "context": "b", "question": "c", "answers": "d"}', "line 2: context: stands twice"),
        ('{"context": "a", "question": "b", "answers": NaN}', "line 2: found NaN, which JSON does not have"),
        (
            '{"context": "a \\ud83d b", "question": "c", "answers": "d"}',
            "line 2: context: found \\ud83d, half",
        ),
        ('{"context": "a", "question": "c", "answers": ["\\ud83d"]}', "line 2: answers: found \\ud83d, half of a char"),
        ('{"context": "a", "question": "c", "answers": ["d"], "id": "\\udc00"}', "line 2: id: found \\udc00, half"),
    ],
)
def test_lines_that_are_no_object_of_text(tmp_path, line, expected):
    assert expected in said(task_of(tmp_path, OK, line))


def test_all_faults_of_a_file_are_listed_up_to_ten(tmp_path):
    message = said(task_of(tmp_path, OK | {"id": None, "zzz": 1}, *[OK | {"context": None}] * 20, OK))
    lines = message.split("\n")
    assert len(lines) == 11 and "line 1: id" in lines[0] and 'line 1: "zzz"' in lines[1] and "12 more" in lines[10]


def test_equal_ids_name_both_lines(tmp_path):
    assert 'line 3: id: "a" is the id of line 1 too' in said(task_of(tmp_path, OK | {"id": "a"}, OK, OK | {"id": "a"}))
    assert 'line 2: id: "2" is the id of line 1 too' in said(task_of(tmp_path, OK | {"id": 2}, OK))


def test_numbers_are_taken_as_the_file_writes_them(tmp_path):
    line = '{"context": "c", "question": "q", "answers": [42, 1.50, -3e4], "id": 7, "cluster": 1.0}'
    sample = task_of(tmp_path, line).sample(0, 0)
    assert sample.answers == ("42", "1.50", "-3e4") and (sample.id, sample.cluster) == ("7", "1.0")


def test_squads_answers_are_its_texts(tmp_path):
    squad = {"text": ["Marxville", "Marxville", "in Marxville"], "answer_start": [1, 1, 2]}
    task = task_of(tmp_path, OK | {"answers": squad})
    assert task.sample(0, 0).answers == ("Marxville", "in Marxville")
    assert task.score(task.sample(0, 0), "It is Marxville.") == {"contains": 1.0}
    assert task.score(task.sample(0, 0), "the text and answer_start") == {"contains": 0.0}


def test_blanks_around_an_answer_do_not_count(tmp_path):
    for metric in ("contains", "contains_all", "exact", "f1"):
        task = task_of(tmp_path, OK | {"answers": [" Marxville \n"]}, metric=metric)
        assert task.score(task.sample(0, 0), "Marxville") == {metric: 1.0}


def test_lines_without_a_cluster_are_their_own(tmp_path):
    task = task_of(tmp_path, *[OK] * 3, OK | {"cluster": "a"})
    assert [task.sample(0, index).cluster for index in range(4)] == ["", "", "", "a"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_files_with_a_mark_are_read_as_it_says(tmp_path, encoding):
    line = json.dumps(OK | {"answers": "Ω"}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_bytes(f"{line}\r\n{line}\r\n".encode(encoding))
    task = Jsonl(str(tmp_path / "a.jsonl"))
    assert [task.sample(0, index).answers for index in range(task.size(0))] == [("Ω",)] * 2


BROKEN = {
    "latin-1": (f"{json.dumps(OK)}\ncaf\u00e9".encode("latin-1"), "is not a readable UTF-8 text (byte 0xe9 in line 2)"),
    "utf-16 without a mark": ("abc\n".encode("utf-16-le"), "holds zero bytes in line 1"),
    "cut short": ("\u00e9".encode()[:1], "is not a readable UTF-8 text (byte 0xc3 in line 1)"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_other_encodings_are_one_line_with_the_place_before_a_model_is_loaded(tmp_path, kind):
    content, expected = BROKEN[kind]
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    for task in (Jsonl(str(path)), Needle(haystack=str(path)), Perplexity(source=str(path))):
        message = said(task)
        assert f"{path} {expected}" in message and "UTF-8" in message and "\n" not in message


def test_missing_and_empty_files_are_one_line(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "folder").mkdir()
    for task, expected in (
        (Jsonl(str(tmp_path / "none")), "there is no file"),
        (Jsonl(str(tmp_path / "folder")), "there is no file"),
        (Jsonl(str(tmp_path / "empty.txt")), "holds no samples"),
        (Needle(haystack=str(tmp_path / "none")), "is neither sotu, noise"),
        (Needle(haystack=str(tmp_path / "folder")), "is neither sotu, noise"),
        (Needle(haystack=str(tmp_path / "empty.txt")), "holds no text"),
        (Perplexity(source=str(tmp_path / "none")), "is neither sotu, a text file"),
        (task_of(tmp_path, "[", json.dumps(OK), "]"), "line 1: found a JSON array, wanted one JSON object per line"),
    ):
        assert expected in said(task)


def test_a_haystack_that_changes_is_read_again(tmp_path):
    task = Needle(haystack=str(tmp_path))
    (tmp_path / "a.txt").write_text("One thing. " * 9)
    before = task.data_checksum()
    (tmp_path / "a.txt").write_text("Another thing. " * 9)
    assert task.data_checksum() != before


def test_reading_the_data_does_not_change_the_settings(tmp_path):
    task = task_of(tmp_path, OK)
    before = dict(task.settings())
    task.validate()
    assert task.settings() == before and set(before) == {"path", "metric", "max_new_tokens", "stop"}


@pytest.mark.parametrize(
    ("asked", "stops"),
    [
        ("task.stop=Question", ("Question",)),
        ("task.stop=[Question]", ("Question",)),
        (r"task.stop='\n'", ("\n",)),
        (r'task.stop=["\n"]', ("\n",)),
        (r"""task.stop=['\n\n','\nQ:']""", ("\n\n", "\nQ:")),
        (r'task.stop=["\t"]', ("\t",)),
        ("task.stop=[]", ()),
        ("task.stop=['\n']", ("\n",)),
    ],
)
def test_stop_strings_are_what_they_look_like(tmp_path, asked, stops):
    path = task_of(tmp_path, OK).path
    made = building.build(compose.composed(["task=jsonl", f"task.path={path}", asked]).task, "the task")
    assert made.stop == stops and made.sample(0, 0).stop == stops


def test_stop_strings_from_python(tmp_path):
    assert task_of(tmp_path, OK, stop=["\n", r"\\n", r"\n"]).stop == ("\n", r"\n", "\n")
    assert building.build(
        compose.composed(["task=jsonl", "task.path=x", f"task.stop={compose.written([chr(10)])}"]).task, ""
    ).stop == ("\n",)


@pytest.mark.parametrize("stop", [None, [""], "", [None], [1], 5, {"a": 1}])
def test_stop_strings_that_are_none(tmp_path, stop):
    with pytest.raises(UserError, match=r"task\.stop must be a list of texts"):
        task_of(tmp_path, OK, stop=stop)


def test_a_span_is_found_in_what_is_encoded(tmp_path):
    padded = OK | {
        "context": "\n" * 40 + " " * 200 + "One. The capital is Marxville. Two.",
        "needle": " The capital is Marxville. ",
    }
    task = task_of(tmp_path, padded)
    task.prepare(Prompter(byte_tokenizer()))
    sample = task.sample(0, 0)
    assert sample.context[slice(*sample.spans["needle"])] == "The capital is Marxville."
    prompt = task.encode(sample)
    assert task.prompter.decode(list(prompt.ids[slice(*prompt.spans["needle"])])) == "The capital is Marxville."


@pytest.mark.parametrize("value", [None, 5, ["a"]])
def test_documents_of_the_hub_without_text_are_refused_by_row(monkeypatch, value):
    rows = datasets.Dataset.from_dict({"text": [value, value]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *place, **options: rows)
    assert "task.field: row 0 of a/b has no text in 'text' but" in said(Perplexity(source="hub:a/b"))
