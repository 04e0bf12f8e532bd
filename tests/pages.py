"""Code that stands on a page of the documentation, as tests run it."""

import gc
import importlib.util
import re
import sys
from contextlib import contextmanager
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def block(page, title):
    """The code of a page (a path below ``docs``) that has this title."""
    text = (DOCS / page).read_text()
    (code,) = re.findall(rf'^```\w+ title="{re.escape(title)}"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    return code


@contextmanager
def module_of(page, title, folder, name=None):
    """The same as a module, written to a folder and imported, under its file's name unless told another.

    Nothing of it stays: a class that is gone is a subclass of nothing any more.
    """
    path = folder / Path(title).name
    path.write_text(block(page, title))
    spec = importlib.util.spec_from_file_location(name or path.stem, path)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]
        vars(module).clear()
        gc.collect()
