"""`pvcbench submit`: packs a finished run into one file for a board."""

from argparse import Namespace
from pathlib import Path

from pvcbench.cli.exits import Parser
from pvcbench.errors import UserError


def parser(**options) -> Parser:
    """What can be asked."""
    made = Parser(
        "pvcbench submit",
        description="Packs a finished run, its rows, configuration, environment and excerpts of prompts, into one file "
        "that `pvcbench board` reads. Folders and host names are taken out, and the file says what was. Rows hold the "
        "right answers and what the model answered.",
        epilog='example: pvcbench submit results/quickstart/a9b99b9e9929 --by "Ada Lovelace"',
        **options,
    )
    made.add_argument("folder", type=Path, metavar="FOLDER", help="the folder of one run")
    made.add_argument("--by", required=True, metavar="NAME", help="who measured it, as the board shall say")
    made.add_argument("--contact", metavar="TEXT", help="how to reach them; everybody can read it")
    made.add_argument("--note", metavar="TEXT", help="what readers should know of the run")
    made.add_argument("--out", metavar="FILE", help="the file or folder to write to (default: RUN.pvcbench.zip here)")
    made.add_argument("--partial", action="store_true", help="pack an unfinished run, marked as incomplete")
    made.add_argument("--no-excerpts", action="store_true", help="leave the excerpts of prompts out")
    return made


def run(asked: Namespace) -> int:
    """Writes the file and says what is in it and what was taken out."""
    from pvcbench.board.pack import pack

    made = pack(asked.folder.expanduser(), asked.by, asked.contact, asked.note, asked.partial, not asked.no_excerpts)
    path = Path(asked.out or made.name).expanduser()
    if path.is_dir() or str(asked.out).endswith("/"):
        path = path / made.name
    write(path, made.content)
    for line in made.manifest.stripped:
        print(f"taken out: {line}")
    for line in made.manifest.missing:
        print(f"incomplete: {line}")
    if made.unknown:
        print(f"whether all samples of the task are there is not known here: {made.unknown}")
    if any(name.startswith("samples") for name in made.manifest.files):
        print("it holds excerpts of the prompts; if their text must not be shared, --no-excerpts leaves them out")
    print(f"{path}: run {made.manifest.run}, {len(made.manifest.files)} files, {len(made.content):,} bytes")
    return 0


def write(path: Path, content: bytes) -> None:
    """Writes a file that is not there, or is there with the same content; another one is not replaced."""
    try:
        if path.exists():
            if path.read_bytes() != content:
                raise UserError(f"{path} holds another submission: choose a new file with --out, or delete it")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file with --out") from error
