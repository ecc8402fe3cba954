"""What must not leave a machine with a run: its paths and host name are taken out, secrets are refused.

Only what changes no number is changed. An identity that holds a path is refused, since the run's id is its hash.
"""

import platform
import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath, PureWindowsPath

from pvcbench.errors import UserError

GONE = "<stripped>"  # stands for the folders of a path; its last name stays
HOST = "<host>"
WHOLE = re.compile(r"(~[\w.-]*[/\\]|/[^\s/]|[A-Za-z]:[/\\]|\\\\|file:/)[^\n]*")  # a text that is a path from its start
FOLDERS = r"(?:[\w.+@~-]+[/\\])"
INSIDE = re.compile(  # an address of a file, a path from a home, a path of two names or more
    rf"file:/+{FOLDERS}*[\w.+@~-]*|(?<![\w/.:<>~-])(?:~[\w.-]*[/\\]{FOLDERS}*|(?:[A-Za-z]:)?[/\\]{FOLDERS}+)[\w.+@~-]*"
)
SECRETS = {
    "a token of the Hugging Face hub": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "a token of GitHub": re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})"),
    "a key of a model's API": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "a key of AWS": re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a token of Slack": re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    "a signed web token": re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "an address with a password": re.compile(r"://[^/\s:@]+:[^/\s@]+@"),
}
NAMED = re.compile(r"(?i)(^|[_.-])(password|passwd|secret|api_?key|(access|auth|hf|wandb)_?(token|key)|credentials?)$")


class Stripper:
    """Takes paths and the host's name out of values, and remembers of which places it did."""

    def __init__(self):
        self.told: dict[str, str] = {}  # what was taken out, by place
        names = {platform.node(), platform.node().partition(".")[0]} - {"localhost"}
        found = sorted((re.escape(name) for name in names if len(name) > 3), key=len, reverse=True)
        self.host = re.compile(rf"(?<![\w-])({'|'.join(found)})(?![\w-])") if found else None

    def value(self, value: object, place: str) -> object:
        """A value of JSON with every text in it stripped."""
        return mapped(value, self.text, place)

    def text(self, text: str, place: str) -> str:
        """A text without folders of this machine and its name; a whole path, or a path inside a sentence."""
        made = INSIDE.sub(lambda found: f"{GONE}/{last(found[0])}", text)
        if WHOLE.fullmatch(text) or leaves(text):
            made = f"{GONE}/{last(text)}"
        if made != text:
            self.told[place] = "a path's folders"
        if self.host is not None and self.host.search(made):
            made, self.told[place] = self.host.sub(HOST, made), "this machine's name"
        return made


def last(path: str) -> str:
    """The last name of a path of any system."""
    return PureWindowsPath(path.removeprefix("file:")).name or PurePosixPath(path).name or "folder"


def leaves(text: str) -> bool:
    """Whether a text is a relative path that climbs out of where it starts."""
    return "\n" not in text and ".." in PureWindowsPath(text).parts


def mapped(value: object, change: Callable[[str, str], str], place: str) -> object:
    """A value with every text in it changed; `change` is told where it stands."""
    if isinstance(value, str):
        return change(value, place)
    if isinstance(value, dict):
        return {key: mapped(one, change, f"{place}.{key}") for key, one in value.items()}
    if isinstance(value, list):
        return [mapped(one, change, f"{place}[{number}]") for number, one in enumerate(value)]
    return value


def texts(value: object, place: str) -> Iterator[tuple[str, str]]:
    """Every text in a value with its place."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from texts(one, f"{place}.{key}")
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from texts(one, f"{place}[{number}]")


def refuse_secrets(value: object, place: str, advice: str) -> None:
    """Raises UserError where a text looks like a secret; the message says where it stands and not what it is."""
    for where, text in texts(value, place):
        found = next((what for what, pattern in SECRETS.items() if pattern.search(text)), None)
        if found is None and NAMED.search(where) and text:
            found = "a secret by its name"
        if found is not None:
            raise UserError(f"{where} holds what looks like {found}: {advice}")


def refuse_paths(identity: object, place: str) -> None:
    """Raises UserError where an identity holds a path: its hash is the run's id, so nothing of it can be taken out."""
    for where, text in texts(identity, place):
        if "\n" not in text and (WHOLE.fullmatch(text) or INSIDE.search(text)):
            raise UserError(
                f"{where} holds a path of this machine, which is part of the run's id: "
                "run it again with a relative path"
            )
