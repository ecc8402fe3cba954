"""Settings of tasks: a value alone is a list of one, and what means nothing is one line that says what is wanted."""

import numpy as np
import pytest

from pvcbench.analyses.observed_task import Observed
from pvcbench.config import building, compose
from pvcbench.errors import TaskError, UserError
from pvcbench.models.random_weights import byte_tokenizer
from pvcbench.tasks.base import Sample, Task, sample_of
from pvcbench.tasks.longbench.task import LongBench
from pvcbench.tasks.needle.task import Needle
from pvcbench.tasks.perplexity import Perplexity
from pvcbench.tasks.prompts import Prompter
from pvcbench.tasks.ruler.task import Ruler


def built(*asked):
    return building.build(compose.composed(list(asked)).task, "the task")


def test_one_value_is_a_list_of_one():
    assert built("task=needle", "task.lengths=512", "task.depths=50").lengths == [512]
    assert built("task=needle", "task.depths=50").depths == [50.0]
    assert built("task=ruler", "task.sets=vt", "task.lengths=512").sets == ["vt"]
    assert built("task=longbench", "task.sets=qasper").sets == ["qasper"]
    assert Observed(tokens=128).tokens == [128]
    assert Needle(np.array([512, 1024]), depths=range(0, 100, 50)).lengths == [512, 1024]


def test_a_haystack_of_files_is_known_by_its_name_and_content(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("Some words. " * 50)
    first, second = (Needle(haystack=str(tmp_path / folder / "a.txt")) for folder in ("one", "two"))
    assert first.settings() == second.settings() and first.data_checksum() == second.data_checksum()
    assert Needle().settings()["source"] == "sotu"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("task=needle task.lengths=[]", "task.lengths must name something"),
        ("task=needle task.lengths=null", "task.lengths must be a whole number"),
        ("task=needle task.lengths=['512']", "task.lengths must be a whole number, 1 or more, not '512'"),
        ("task=needle task.lengths=[512.5]", "task.lengths must be a whole number"),
        ("task=needle task.lengths=[true]", "task.lengths must be a whole number"),
        ("task=needle task.lengths=[-512]", "task.lengths must be a whole number"),
        ("task=needle task.depths=[101]", "task.depths must be a number from 0 to 100, not 101"),
        ("task=needle task.depths=[-1]", "task.depths must be a number from 0 to 100, not -1"),
        ("task=needle task.depths=[nan]", "task.depths must be a number from 0 to 100"),
        ("task=needle task.depths=['50']", "task.depths must be a number from 0 to 100, not '50'"),
        ("task=needle task.repeats=0", "task.repeats must be a whole number, 1 or more, not 0"),
        ("task=needle task.needles=0", "task.needles must be a whole number"),
        ("task=needle task.needles=2 task.asked=3", "task.asked 1 to task.needles"),
        ("task=needle task.max_new_tokens=-1", "task.max_new_tokens must be a whole number"),
        ("task=needle task.snap_tokens=-1", "task.snap_tokens must be a whole number"),
        ("task=needle task.tolerance=-1", "task.tolerance must be a number"),
        ("task=needle task.value=5", "task.value must be one of word, number, uuid"),
        ("task=needle task.value=[word]", "task.value must be one of word, number, uuid"),
        ("task=jsonl task.path=x task.max_new_tokens=0", "task.max_new_tokens must be a whole number"),
        ("task=jsonl task.path=x task.max_new_tokens='5'", "task.max_new_tokens must be a whole number"),
        ("task=jsonl task.path=x task.metric=[f1]", "task.metric must be one of"),
        ("task=perplexity task.documents=0", "task.documents must be a whole number"),
        ("task=perplexity task.prefix=true", "task.prefix must be a whole number"),
        ("task=perplexity task.source=null", "task.source must be text"),
        ("task=perplexity task.beyond=1", "task.beyond must be true or false"),
        ("task=longbench task.sets=[]", "task.sets must name a set"),
        ("task=longbench task.max_length=1", "task.max_length must be a whole number, 2 or more"),
        ("task=longbench task.e=yes", "task.e must be true or false"),
        ("task=longbench task.data_dir=5", "task.data_dir must be a folder, data.zip or null, not 5"),
        ("task=longbench task.data_dir=[a]", "task.data_dir must be a folder, data.zip or null, not ['a']"),
        ("task=lm_eval task.tasks=[null]", "task.tasks must be a list of texts"),
        (
            "task=lm_eval task.tasks=a task.apply_chat_template=no",
            "apply_chat_template must be true or false, not 'no'",
        ),
        ("task=lm_eval task.tasks=a task.num_fewshot=-1", "task.num_fewshot must be a whole number, 0 or more"),
        ("task=lm_eval task.tasks=a task.num_fewshot=abc", "task.num_fewshot must be a whole number"),
        ("task=lm_eval task.tasks=a task.per_task=1.5", "task.per_task must be a whole number, 1 or more, not 1.5"),
        ("task=lm_eval task.tasks=a task.per_task=true", "task.per_task must be a whole number, 1 or more, not True"),
        ("task=lm_eval task.include_path=5", "task.include_path must be a folder or null, not 5"),
        ("task=throughput task.memory_gib=true", "task.memory_gib must be null or a number above 0, not True"),
        ("task=throughput task.memory_gib=inf", "task.memory_gib must be null or a number above 0, not inf"),
        ("task=ruler task.samples=0", "task.samples must be a whole number"),
        ("task=attention_patterns task.tokens=[32]", "task.tokens must be a whole number, 64 or more"),
        ("task=attention_patterns task.sinks=1.5", "task.sinks must be a whole number, 1 or more, not 1.5"),
        ("task=attention_patterns task.recent=null", "task.recent must be a whole number"),
        ("task=attention_patterns task.rows=4096", "are at most the shortest task.tokens"),
        ("task=attention_patterns task.top=[a,1]", "task.top must be a whole number, 1 or more, not 'a'"),
        ("task=attention_patterns task.thresholds=5", "task.thresholds holds numbers above 0 for uniform"),
        ("task=attention_patterns task.thresholds.middle=nan", "task.thresholds.middle must be a number"),
        ("task=attention_consistency task.distance_weight=nan", "task.distance_weight must be a number"),
        ("task=attention_consistency task.share=abc", "task.share must be a number, not 'abc'"),
        ("task=attention_consistency task.ensembles=[a,1]", "task.ensembles must be a whole number, 1 or more"),
        ("task=attention_consistency task.ahead=[]", "task.ahead must name something"),
        ("task=context_redundancy task.shares=[null]", "task.shares must be a number from 0 to 1, not None"),
        ("task=context_redundancy task.above=true", "task.above must be a number from 0 to 1, not True"),
        ("task=pivotal_roles task.splits=1.5", "task.splits must be a whole number, 1 or more, not 1.5"),
        ("task=pivotal_roles task.share=null", "task.share must be a number from 0 to 1, not None"),
    ],
)
@pytest.mark.sampled(20)
def test_what_means_nothing_is_one_line(asked, expected):
    with pytest.raises(UserError) as caught:
        built(*asked.split())
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("haystack", [None, 5, "", ["a"]])
def test_a_haystack_is_named_by_text(haystack):
    with pytest.raises(UserError, match=r"task\.haystack must be text"):
        Needle(haystack=haystack).validate()


def test_every_task_can_be_checked_without_a_model(tmp_path):
    (tmp_path / "a.txt").write_text("Some words. " * 50)
    for task in (
        Needle(),
        Needle(haystack="distractors"),
        Perplexity(source=str(tmp_path)),
        Ruler(),
        Task(),
        Observed(),
    ):
        assert task.validate() is None
    with pytest.raises(UserError, match="there is no"):
        LongBench(sets="qasper", data_dir=str(tmp_path / "none")).validate()


@pytest.mark.parametrize("span", [(0, 0), (3, 2), (-1, 2), (2, 99)])
def test_a_span_outside_its_prompt_is_refused(span):
    with pytest.raises(UserError, match="'needle' is no part of its prompt"):
        Prompter(byte_tokenizer()).encode(Sample("0", "abc", "q", (), 1, spans={"needle": span}))


def test_a_span_that_its_tokens_do_not_say_is_refused():
    class Blind:
        """A tokenizer that writes every character as the same unknown token."""

        chat_template = None

        def __call__(self, text, **_):
            return {"input_ids": [0] * len(text), "offset_mapping": [(n, n + 1) for n in range(len(text))]}

        def decode(self, ids, **_):
            return "?" * len(ids)

    prompter = Prompter(Blind())
    with pytest.raises(UserError, match="cannot write the passage 'needle': 'b' becomes"):
        prompter.encode(Sample("0", "abc", "q", (), 1, spans={"needle": (1, 2)}))
    assert prompter.encode(Sample("0", "a?c", "q", (), 1, spans={"needle": (1, 2)})).spans == {"needle": (1, 2)}


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (lambda: 1 / 0, "fails at sample 1: ZeroDivisionError: division by zero"),
        (lambda: "text", "gives str for sample 1"),
    ],
    ids=["raises", "returns"],
)
def test_what_goes_wrong_in_a_task_names_it_and_the_sample(found, told):
    class Own(Task):
        name = "own"

        def sample(self, seed, index):
            return found()

    with pytest.raises(TaskError, match=r"task 'own' \(.*Own\) " + told):
        sample_of(Own(), 0, 1)
