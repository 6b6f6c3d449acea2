"""The board's files under node: the very text that a browser gets, asked from Python."""

import json
import shutil
import subprocess
from typing import Any

import pytest

from pages.ui import board_values

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(
    NODE is None, reason="there is no node to run the board's files in: apt-get install nodejs"
)


def answer(body: str, **given: Any) -> Any:
    """What a function of this body returns; it sees the closed forms, the words, and `given` by their names."""
    files = (board_values.FOLDER / name for name in ("closed_forms.js", "words.js"))
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    call = f"(({', '.join(given)}) => {{ {body} }})({', '.join(map(json.dumps, given.values()))})"
    done = subprocess.run(
        [str(NODE), "-"],
        input=f'"use strict";\n{source}\nprocess.stdout.write(JSON.stringify({call}));',
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
