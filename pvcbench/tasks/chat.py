"""Chat templates: rendered with a fixed date, and with thinking off unless it is asked for.

A template may write the day it runs on (`strftime_now`): here that is always the same day, so that prompts of two days
are equal. Models that think before they answer are told not to by what their template knows: `enable_thinking` (Qwen3,
GLM-4.5, SmolLM3), `thinking` (DeepSeek-V3.1, Granite), `thinking_budget` (Seed-OSS), `reasoning_effort` (gpt-oss), or a
system message (Nemotron). Where a template opens a block of thoughts all the same (DeepSeek-R1), the block is closed.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import date as calendar

import jinja2

from pvcbench.errors import UserError

DATE = "2026-01-01"  # what templates take for today, unless model.date says another day
MARKER = "THE-USERS-MESSAGE"
OFF = {"enable_thinking": False, "thinking": False, "thinking_budget": 0}
ON = {"enable_thinking": True, "thinking": True}
SPOKEN = {"/no_think": "/think", "detailed thinking off": "detailed thinking on"}  # system messages, off and on
OPENED = re.compile(r"<([^<>\s/]*(?:think|thought|reason)[^<>\s/]*)>\s*$")
NO_EFFORT = re.compile(r"reasoning_effort\s*(?:==|!=|in|not in)[^%}]*['\"]none['\"]")


class Chat:
    """The chat template of a tokenizer; `thinking` says what became of thoughts.

    off: its own switch is set; least: it knows more or less of them, not none; closed: it opens a block of thoughts,
    which is closed at once; on: they were asked for; no switch: it writes of thoughts, and nothing turns them off;
    None: it knows none.
    """

    def __init__(self, tokenizer, thinking: bool = False, date: str = DATE):
        if not isinstance(thinking, bool):
            raise UserError(f"model.thinking must be true or false, not {thinking!r}")
        try:
            own = tokenizer.get_chat_template()
        except ValueError as error:
            raise UserError("this tokenizer has several chat templates and no default: set model.chat=false") from error
        day = pinned(date)
        self.tokenizer, self.template = tokenizer, day + own if "strftime_now" in own else own
        self.options, self.system, self.closing = {}, None, ""
        off = OFF | {"reasoning_effort": "none" if NO_EFFORT.search(own) else "low"}
        spoken = next((text for text in SPOKEN if text in own), None)
        switched = self.render(probe(), off) != self.render(probe(), ON)
        if switched:
            self.options = ON if thinking else off
        elif spoken is not None:
            self.system = SPOKEN[spoken] if thinking else spoken
        opened = OPENED.search(self.render(probe()))
        if opened and not thinking:
            self.closing = f"\n\n</{opened[1]}>\n\n"
        knows = switched or spoken is not None or opened is not None
        least = switched and off["reasoning_effort"] == "low" and self.render(probe(), OFF) == self.render(probe(), ON)
        without = "closed" if opened else "least" if least else "off"
        self.thinking = None if not knows else "on" if thinking else without
        if self.thinking is None and re.search(r"</\w*(think|thought)\w*>", own):
            self.thinking = "no switch"

    def render(
        self, turns: Sequence[Mapping], options: Mapping | None = None, add_generation_prompt: bool = True, **more
    ) -> str:
        """A conversation as text; `options` stand in for those that set the switch."""
        turns = [dict(turn) for turn in turns]
        if self.system is not None:
            turns = with_system(turns, self.system)
        options = self.options if options is None else options
        try:
            text = self.tokenizer.apply_chat_template(
                turns,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **options,
                **more,
            )
        except (jinja2.TemplateError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the chat template cannot be used ({reason}): set model.chat=false") from error
        return text.rstrip() + self.closing if self.closing and add_generation_prompt else text

    def frame(self) -> tuple[str, str]:
        """What the chat template puts around a user's message."""
        before, found, after = self.render(probe()).partition(MARKER)
        if not found:
            raise UserError("the chat template does not repeat the user's message: set model.chat=false")
        if MARKER in after:
            raise UserError("the chat template repeats the user's message more than once: set model.chat=false")
        return before, after


def probe() -> list[dict]:
    """A conversation of one message that is easily found again."""
    return [{"role": "user", "content": MARKER}]


def with_system(turns: list[dict], text: str) -> list[dict]:
    """The conversation with a line more in its system message."""
    if turns and turns[0]["role"] == "system":
        return [turns[0] | {"content": f"{text}\n{turns[0]['content']}"}, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]


def pinned(date: str) -> str:
    """A macro that stands in for `strftime_now`: every code of strftime, as it is at midnight of one day."""
    try:
        day = calendar.fromisoformat(date)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.date must be a day such as {DATE}, not {date!r}") from error
    codes = [f"%{flag}{letter}" for flag in ("", "-") for letter in "aAbBcCdDeFgGhHIjmMnpSTuUVwWxXyYZ"]
    steps = "".join(f" | replace({code!r}, {day.strftime(code)!r})" for code in codes)
    return f"{{% macro strftime_now(format) %}}{{{{ format{steps} }}}}{{% endmacro %}}\n"
