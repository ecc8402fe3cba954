"""The command `pvcbench`: every subcommand says what it does, mistakes are one line, former names say the new one."""

import subprocess
import sys

import pytest

from pvcbench.cli.main import COMMANDS, main

FORMER = {
    "verify": "verify",
    "rescore": "rescore",
    "excerpts": "excerpts",
    "report": "report",
    "lm_eval_cli": "lm-eval",
}


def ended(arguments):
    """The exit code, whether it is returned or ends the process as argparse's help does."""
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_command_does_with_an_example(name, capsys):
    for arguments in ([name, "--help"], *([["sweep", one, "--help"] for one in ("submit", "status", "run")])):
        assert ended(arguments) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert f"usage: pvcbench {arguments[0]}" in said and (arguments == ["sweep", "--help"] or "example" in said)


def test_the_whole_help_names_every_command(capsys):
    for arguments in (["--help"], ["-h"], ["help"]):
        assert ended(arguments) == 0
        said = capsys.readouterr().out
        assert all(name in said for name in COMMANDS) and "exit codes" in said


@pytest.mark.parametrize("arguments", [
    ["verify"], ["verify", "x", "--cells", "many"], ["report", "--nothing"], ["figures", "a", "b"], ["compare", "x"],
    ["sweep"], ["sweep", "stop"], ["sweep", "run", "x"], ["completion", "dos"], ["rescore"], ["excerpts"], ["method"],
    ["list", "seed=1"], ["models", "--what"], ["--what"],
], ids=" ".join)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(arguments, capsys):
    assert ended(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("pvcbench: ") and said.err.count("\n") == 1


def test_run_is_the_default(capsys):
    assert main(["run", "--cfg", "job", "seed=7"]) == 0
    named = capsys.readouterr().out
    assert main(["seed=7", "--cfg", "job"]) == 0 and capsys.readouterr().out == named and "seed: 7" in named


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_option(shell, capsys):
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in COMMANDS) and "rows-only" in said.replace(r"\-", "-")


@pytest.mark.parametrize("module", FORMER)
def test_former_names_run_and_say_the_new_one(module):
    done = subprocess.run(
        [sys.executable, "-m", f"pvcbench.{module}", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and f"usage: pvcbench {FORMER[module]}" in done.stdout
    assert done.stderr == f"pvcbench: `python -m pvcbench.{module}` is now `pvcbench {FORMER[module]}`\n"
