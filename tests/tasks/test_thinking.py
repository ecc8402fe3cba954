"""Chat templates: thinking is off by what each of them knows, and their frame is what the template itself writes."""

import pytest

from pvcbench.config import compose
from pvcbench.errors import UserError
from pvcbench.models import loading, random_weights
from pvcbench.models.loaded import LoadedModel
from pvcbench.runs import runner
from pvcbench.tasks.prompts import Prompter

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"
START = "{% if add_generation_prompt %}<assistant>\n"
EMPTY = "<think>\\n\\n</think>\\n\\n"


def template(end, before=""):
    return f"{before}{TURNS}{START}{end}{{% endif %}}"


STYLES = {  # a template, what the frame ends with when thoughts are off, and when they are on, and what becomes of them
    "Qwen3": (
        template(f"{{% if enable_thinking is defined and enable_thinking is false %}}{{{{ '{EMPTY}' }}}}{{% endif %}}"),
        ("<assistant>\n<think>\n\n</think>\n\n", "<assistant>\n", "off"),
    ),
    "Qwen3.5": (
        template("{% if enable_thinking is defined and enable_thinking is true %}{{ '<think>\\n' }}{% else %}"
                 f"{{{{ '{EMPTY}' }}}}{{% endif %}}"),
        ("<assistant>\n<think>\n\n</think>\n\n", "<assistant>\n<think>\n", "off"),
    ),
    "GLM-4.5": (
        template("{{ '<think></think>' if (enable_thinking is defined and not enable_thinking) else '' }}"),
        ("<assistant>\n<think></think>", "<assistant>\n", "off"),
    ),
    "SmolLM3": (
        template("{% if not enable_thinking %}<think>\n\n</think>\n{% endif %}",
                 "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"),
        ("<think>\n\n</think>\n", "<assistant>\n", "off"),
    ),
    "DeepSeek-V3.1": (
        template("{% if thinking %}<think>{% else %}</think>{% endif %}",
                 "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"),
        ("<assistant>\n</think>", "<assistant>\n<think>", "off"),
    ),
    "Seed-OSS": (
        template("{% if thinking_budget is defined and thinking_budget == 0 %}<seed:think></seed:think>{% endif %}"),
        ("<seed:think></seed:think>", "<assistant>\n", "off"),
    ),
    "Nemotron-Nano-2": (
        template("{% if ns.on %}<think>\n{% else %}<think></think>{% endif %}",
                 "{% set ns = namespace(on=true) %}{% for m in messages %}{% if '/no_think' in m.content %}"
                 "{% set ns.on = false %}{% elif '/think' in m.content %}{% set ns.on = true %}{% endif %}"
                 "{% endfor %}"),
        ("<assistant>\n<think></think>", "<assistant>\n<think>\n", "off"),
    ),
    "DeepSeek-R1": (
        template("<think>\n"), ("<assistant>\n<think>\n\n</think>\n\n", "<assistant>\n<think>\n", "closed")
    ),
    "EXAONE-Deep": (
        template("<thought>\n"), ("<thought>\n\n</thought>\n\n", "<assistant>\n<thought>\n", "closed")
    ),
}  # fmt: skip


def tokenizer(text):
    made = random_weights.byte_tokenizer()
    made.chat_template = text
    return made


@pytest.mark.parametrize("style", STYLES)
def test_thoughts_are_off_by_default_and_can_be_had(style):
    text, (off, on, state) = STYLES[style]
    without, with_thoughts = Prompter(tokenizer(text)), Prompter(tokenizer(text), thinking=True)
    assert without.after.endswith(off) and without.thinking == state
    assert with_thoughts.after.endswith(on) and with_thoughts.thinking == "on"


def test_a_system_message_turns_thoughts_off_where_the_template_knows_one():
    text = template("", "{# system: detailed thinking on|off #}") + "{% if false %}detailed thinking off{% endif %}"
    off, on = Prompter(tokenizer(text)), Prompter(tokenizer(text), thinking=True)
    assert off.before == "<system>detailed thinking off</system>\n<user>" and off.thinking == "off"
    assert on.before == "<system>detailed thinking on</system>\n<user>" and on.thinking == "on"


EFFORT = "{% if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}"


@pytest.mark.parametrize(
    "check, expected",
    [("", ("low", "least")), ("{% if reasoning_effort not in ['none', 'high'] %}{% endif %}", ("none", "off"))],
)
def test_effort_is_the_least_that_the_template_knows(check, expected):
    """gpt-oss knows low, medium and high: its thoughts become short, and the rows say so."""
    prompter = Prompter(tokenizer(template("", EFFORT + check + "Reasoning: {{ reasoning_effort }}\n")))
    assert (prompter.before, prompter.thinking) == (f"Reasoning: {expected[0]}\n<user>", expected[1])
    asked = Prompter(tokenizer(template("", EFFORT + "Reasoning: {{ reasoning_effort }}\n")), thinking=True)
    assert asked.before.startswith("Reasoning: medium") and asked.thinking == "on"


def test_templates_without_thoughts_are_left_alone():
    plain = tokenizer(template(""))
    turn = [{"role": "user", "content": "Why?"}]
    for thinking in (False, True):
        prompter = Prompter(plain, thinking=thinking)
        assert prompter.thinking is None
        whole = plain.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        assert f"{prompter.before}Why?{prompter.after}" == whole
    assert Prompter(plain, chat=False).thinking is None


def test_a_template_that_nothing_turns_off_is_named(capsys):
    text = template("") + "{% if false %}{{ content.split('</think>')[-1] }}{% endif %}"
    loaded = random_weights.random("tiny", "cpu", None)
    loading._told(LoadedModel(loaded.model, tokenizer(text), {}))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no switch to turn them off" in said
    loading._told(loaded)
    assert capsys.readouterr().err == ""


LEADING = ["\n\nDay {{ strftime_now('%d') }} ", "  {% if true %}Day {% endif %}{{ strftime_now('%-d, %B %Y') }} "]


@pytest.mark.parametrize("start", LEADING)
def test_a_fixed_date_changes_nothing_else_of_a_template(start):
    """The frame of a dated template is that of the template with the date written out."""
    fixed = start.replace("{{ strftime_now('%d') }}", "01").replace(
        "{{ strftime_now('%-d, %B %Y') }}", "1, January 2026"
    )
    dated, written = Prompter(tokenizer(template("", start))), Prompter(tokenizer(template("", fixed)))
    assert (dated.before, dated.after) == (written.before, written.after)


BROKEN = {
    "cannot be used .*no system": "{{ raise_exception('no system') }}",
    "does not repeat": "Hello",
    "more than once": "{{ messages[0].content }} {{ messages[0].content }}",
}


@pytest.mark.parametrize("message", BROKEN)
def test_templates_that_fit_no_question_are_refused(message):
    with pytest.raises(UserError, match=message + ".*model.chat=false"):
        Prompter(tokenizer(BROKEN[message]))
    assert Prompter(tokenizer(BROKEN[message]), chat=False).before == ""


@pytest.mark.parametrize("setting", ["thinking", "chat", "evict_sliding"])
def test_words_are_no_truth_values(setting):
    loaded = random_weights.random("tiny", "cpu", None)
    with pytest.raises(UserError, match=rf"model.{setting} must be true"):
        LoadedModel(loaded.model, tokenizer(template("")), {}, **{setting: "no"}).prompter()


def test_rows_say_what_became_of_thoughts(tmp_path):
    loaded = random_weights.random("tiny", "cpu", None)
    text = STYLES["Qwen3"][0]
    common = ["task=needle", "task.lengths=[300]", "task.max_new_tokens=2", "limit=1", "method=h2o", "budgets=[0.5]"]
    asked = compose.composed([*common, "threads=1", "wandb.mode=disabled", f"results={tmp_path}"])
    found = {}
    for thinking in (False, True):
        made = LoadedModel(loaded.model, tokenizer(text), loaded.identity, ends=(0,), thinking=thinking)
        result = runner.run(asked, model=made)
        found[result.folder] = {row["thinking"] for row in result.rows["protocol"]}, set(result.rows["prompt_sha256"])
    (off, first), (on, second) = found.values()
    assert len(found) == 2 and (off, on) == ({"off"}, {"on"}) and first.isdisjoint(second)
    plain = runner.run(asked, model=loaded)
    assert {row["thinking"] for row in plain.rows["protocol"]} == {None}
