"""The documentation's site: built strictly, and nothing in it is loaded from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="needs the extra docs")

ROOT = Path(__file__).parents[2]
LOADED = re.compile(r"""<(?:script|img|iframe|source|embed)\b[^>]*\bsrc=["']?((?:https?:)?//[^"' >]+)""")
LINKED = re.compile(r"""<link\b[^>]*\bhref=["']?((?:https?:)?//[^"' >]+)""")
STYLED = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')]+)""")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_nothing_is_loaded_from_elsewhere(site):
    pages, styles = list(site.rglob("*.html")), list(site.rglob("*.css"))
    assert len(pages) > 25 and styles
    texts = [path.read_text(encoding="utf-8") for path in pages]
    found = [one for text in texts for pattern in (LOADED, LINKED, STYLED) for one in pattern.findall(text)]
    found += [one for path in styles for one in STYLED.findall(path.read_text(encoding="utf-8"))]
    assert not found
    assert not [text for text in texts if 'class="mermaid"' in text]  # drawn by a script from outside


def test_the_patterns_find_what_they_should():
    assert LOADED.findall('<script src="https://unpkg.com/x"></script>') == ["https://unpkg.com/x"]
    assert LINKED.findall('<link rel="stylesheet" href="//fonts.example/css">') == ["//fonts.example/css"]
    assert STYLED.findall('@import url("https://a.example/b.css")') == ["https://a.example/b.css"]


def test_the_python_page_has_the_public_door(site):
    import pvcbench

    text = (site / "reference" / "api.html").read_text(encoding="utf-8")
    assert not [name for name in pvcbench.__all__ if name != "__version__" and f"{name}</" not in text]


def test_tables_are_tables(site):
    """A table behind a mark of a script is drawn as one."""
    text = (site / "guide" / "first_run.html").read_text(encoding="utf-8")
    assert text.count("<table>") >= 3 and "| --- |" not in text
