"""Writes docs/reference/methods.md: a definition card for every method of conf/method, from its file and its YAML.

    python scripts/method_cards.py            # writes the page; a test compares
    python scripts/method_cards.py --check    # says whether the page is current, and exits with 1 if not

What a method needs, protects and supports is asked of the method itself; its rule, its deviations, its known failures,
its cost and where its settings come from are the comments of its YAML. Beside them stand what
`scripts/crosscheck_kvpress.py` measured, from its JSON, and how many entries PyramidInfer's settings keep.
"""

import inspect
import json
import re
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from methods.pvc_ladder import ladder
from pvcbench.config import building, compose
from pvcbench.policy import Method, Shape
from scripts.written_page import program, reference, table

ROOT = Path(__file__).resolve().parent.parent
PAGE = reference("methods")
SHAPE = Shape(4096, 32, tuple(range(32)))  # what the methods are asked about
BUDGET = 1024
CROSSCHECK = ROOT / "results" / "bench" / "crosscheck_kvpress.json"
PUBLISHED = {"pyramidinfer_7b": 32, "pyramidinfer_13b": 40, "pyramidinfer_70b": 80}  # layers of their models
PROMPTS = (82, 90, 200, 512, 2048)
HEAD = """# Methods: what exactly runs under each name

In this field one name means many methods, so here is what each name means in pvcbench. This page is written by
`scripts/method_cards.py` from the method files and their YAML. Tests hold every method to a naive float64
implementation, and `scripts/crosscheck_kvpress.py` compares kept sets with kvpress'. B is the budget: entries per KV
head, mean over layers; b the same without a method's window; H the KV heads of a layer, n the prompt's tokens. A share
of the prompt is rounded down to whole entries (10% of 95 tokens is B = 9); a share of less than one entry is an error.
"""
COUNTS = """## PyramidInfer's published settings, by layer

Entries that each layer keeps, from layer 0 on, by the official rule in closed form; tests hold the engine to them. The
mean at 2,048 tokens is 76.5%, 72.3% and 78.0% of the prompt, not the paper's 45.4%.
"""


def parent(name: str) -> str | None:
    """The method whose YAML a named variant starts from."""
    found = re.search(r"(\w+)@_here_", (compose.CONF / "method" / f"{name}.yaml").read_text(encoding="utf-8"))
    return found and found[1]


def comments(name: str) -> list[str]:
    """The comment lines of a method's YAML, the package line left out."""
    lines = (compose.CONF / "method" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return [line[2:] for line in lines if line.startswith("# ") and "@package" not in line]


def settings(method: Method, prefix: str = "") -> list[str]:
    """Hyperparameters and their values, those of a wrapped method with its name before."""
    found = []
    for name, value in vars(method).items():
        if name == "budget":  # a cell's, which a method whose scores depend on it is told
            continue
        if isinstance(value, Method):
            found += [f"{prefix}{name} = {type(value).__name__}", *settings(value, f"{prefix}{name}.")]
        else:
            found.append(f"{prefix}{name} = {value}")
    return found


def last_rows(count: int) -> str:
    """So many of the prompt's last rows in words."""
    return "all rows" if count >= SHAPE.tokens else "the last row" if count == 1 else f"the last {count} rows"


def needs(method: Method) -> str:
    """What a method looks at: rows of attention (asked of it) and tensors (read in its source)."""
    found, rows = [], method.row_weights(SHAPE, 16)
    if rows is not None:
        found.append(f"attention of {last_rows(len(rows))}")
    if method.needs_rows:
        found.append(f"{last_rows(method.needs_rows)} one by one")
    kinds = [type(method), *(type(value) for value in vars(method).values() if isinstance(value, Method))]
    source = "".join(inspect.getsource(kind) for kind in kinds)
    words = {"keys": "keys", "values": "values", "queries": "the prompt's queries", "draws": "random draws"}
    found += [text for name, text in words.items() if f"seen.{name}" in source]
    found += ["the keys before rotary embedding"] if method.needs_plain_keys else []
    found += ["values as the output projection writes them"] if method.needs_output else []
    found += ["the hidden states that attention is given"] if method.needs_hidden else []
    found += [f"a file (`{name}`)" for name in method.files]
    found += [f"what follows the prompt ({method.reads})"] if method.reads else []
    return ", ".join(found) or "positions alone"


def evicts(method: Method) -> str:
    """When a method evicts."""
    if method.reference:
        return "never"
    found = ["between layers while the prompt is read" if method.prunes else "once after the prompt was read"]
    found += ["under `decode=hold` while generating too"] if "hold" in method.decodes else []
    return ", ".join(found)


def always(first: int, last: int) -> str:
    """How many first and last tokens are protected."""
    kept = [f"the first {first}"] * (first > 0) + [f"the last {last}"] * (last > 0)
    return f"{' and '.join(kept)} tokens (asked at B = {BUDGET:,} of {SHAPE.tokens:,})" if kept else "nothing"


def beside_kvpress(name: str) -> list[str]:
    """What share of a press' kept entries the method keeps too, over the settings that were compared."""
    if not CROSSCHECK.is_file():
        return []
    known = json.loads(CROSSCHECK.read_text(encoding="utf-8"))
    pairs = [pair for one in known["settings"] for pair in one["pairs"] if pair["ours"].split()[0] == name]
    if not pairs:
        return []
    where = pairs[0]["ours"][len(name) :]
    ends = sorted({f"{pick(pair['mean'] for pair in pairs):.3f}" for pick in (min, max)})
    press, least = f"{pairs[0]['kvpress']}Press", min(pair["least"] for pair in pairs)
    settings = " and ".join(f"{tokens:,}" for tokens in sorted({one["tokens"] for one in known["settings"]}))
    shares = " and ".join(f"{ratio:.0%}" for ratio in sorted({one["ratio"] for one in known["settings"]}))
    text = f"keeps{where} {' to '.join(ends)} of what {press} keeps "
    text += f"({settings} tokens, {shares} removed; least layer {least:.3f})"
    why = f": {pairs[0]['why']}" if pairs[0]["why"] else ""
    return [f"- **Beside kvpress {known['peer']['packages']['kvpress']}:** {text}{why}."]


def card(name: str, method: Method) -> str:
    """One method's card."""
    title, *notes = comments(name)
    first, last = method.protects(BUDGET, SHAPE)
    notes += [f"Otherwise: as `{parent(name)}`."] if parent(name) else []
    facts = {
        "Evicts": evicts(method),
        "Needs": needs(method),
        "Always keeps": "everything" if method.reference else always(first, last),
        "Protocols": ", ".join(method.protocols),
        "State": f"{method.channels} float64 per entry under hold" if method.channels else "none",
        "Settings": ", ".join(f"`{one}`" for one in settings(method)) or "none",
        "File": f"`methods/{Path(inspect.getfile(type(method))).name}`",
    }
    lines = [*said(notes), *beside_kvpress(name), *(f"- **{head}:** {text}" for head, text in facts.items())]
    return "\n".join([f"## `{name}`", "", title, "", *lines])


def said(notes: list[str]) -> list[str]:
    """The comments of a YAML as lines of a card."""
    return [f"- **{head}:** {text}" for head, text in [note.split(": ", 1) for note in notes if ": " in note]]


def open_card(name: str) -> str:
    """The card of a method that runs only with a setting of the user's."""
    title, *notes = comments(name)
    node = {key: value for key, value in compose.file_of("method", name).items() if key != "_target_"}
    given = ", ".join(f"`{key}`" for key, value in node.items() if value == compose.MISSING)
    others = ", ".join(f"`{key} = {value}`" for key, value in node.items() if value != compose.MISSING)
    lines = [*said(notes), f"- **Settings:** {given} must be given; {others}"]
    return "\n".join([f"## `{name}`", "", title, "", *lines])


def counts(methods: dict[str, Method]) -> str:
    """Entries kept by layer of PyramidInfer's settings, a block for each setting and prompt."""
    parts = []
    for name, layers in PUBLISHED.items():
        parts.append(f"`{name}`, {layers} layers:\n")
        for tokens in PROMPTS:
            kept = ladder(methods[name], Shape(tokens, layers, tuple(range(layers))))[:layers]
            head = f"n = {tokens:,}, mean {sum(kept) / layers:,.1f} ({sum(kept) / layers / tokens:.1%}):"
            parts += textwrap.wrap(
                f"{head} {' '.join(map(str, kept))}", 116, initial_indent="    ", subsequent_indent="        "
            )
        parts.append("")
    return COUNTS + "\n" + "\n".join(parts).rstrip()


def page() -> str:
    """The whole page."""
    names, complete = compose.options("method"), compose.complete("method")
    methods = building.build_methods(compose.composed([f"method=[{','.join(complete)}]"]).methods)
    cards = [card(name, methods[name]) if name in methods else open_card(name) for name in names]
    listed = table(["name", "what it is"], [[f"[`{name}`](#{name})", comments(name)[0]] for name in names])
    return "\n\n".join([HEAD.rstrip(), listed, *cards, counts(methods)]) + "\n"


if __name__ == "__main__":
    sys.exit(program(__doc__, PAGE, page))
