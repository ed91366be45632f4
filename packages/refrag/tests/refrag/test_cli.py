"""The command line: what it prints, writes and refuses."""

import contextlib
import io
import json
import subprocess
import sys

import pytest
from refrag_tokenizers import SENTENCES, tokenizer

from latentlab_shared.cli import run
from refrag.cli import app


def refrag(*arguments: object, code: int = 0) -> tuple[str, str]:
    """Run the command in this process; a wrong exit code or a traceback fails the test."""
    given = [str(argument) for argument in arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
        run(app, "refrag", given)
    assert left.value.code == code, f"{given}: {left.value.code}\n{out.getvalue()}\n{err.getvalue()}"
    assert "Traceback" not in err.getvalue()
    return out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Two folders, as transformers writes them."""
    home = tmp_path_factory.mktemp("tokenizers")
    for family in ("wordpiece", "gpt2"):
        tokenizer(family).save_pretrained(home / family)
    return home


def test_nothing_heavy_is_loaded_for_help():
    heavy = ("torch", "transformers", "numpy", "pyarrow")
    code = f"import sys, refrag.cli, refrag.framework.settings; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_align_a_text(tokenizers):
    sides = ("--encoder", tokenizers / "wordpiece", "--decoder", tokenizers / "gpt2")
    out, _ = refrag("align", "The Library held 288", *sides, "--json")
    anchors = json.loads(out)["anchors"]
    assert anchors[0] == {"i": 0, "j": 0, "char_lo": 0, "char_hi": 0}
    assert {3, 11, 16, 20} <= {anchor["char_lo"] for anchor in anchors}
    out, _ = refrag("align", "The Library", *sides)
    assert "' Li'" in out and "##bra" in out


def test_align_a_corpus(tokenizers, tmp_path):
    (tmp_path / "corpus.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    sides = ("--encoder", tokenizers / "wordpiece", "--decoder", tokenizers / "gpt2")
    where = ("--input", tmp_path / "corpus.txt", "--output", tmp_path / "out")
    out, _ = refrag("align", *sides, *where, "--json")
    assert json.loads(out)["texts"] == len(SENTENCES)
    again, _ = refrag("align", *sides, *where, "--json")
    assert json.loads(again)["texts"] == 0
    _, err = refrag("align", *sides, *where, "--unit", "byte", code=2)
    assert "another unit" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["align"], "nothing to align"),
        (["align", "x", "--input", "a.txt"], "nothing to align"),
        (["align", "x", "--unit", "word"], "no unit"),
        (["align", "x", "--encoder", "/no/such"], "no such tokenizer folder"),
    ],
)
def test_mistakes_are_one_line(tokenizers, arguments, message):
    sides = ["--encoder", tokenizers / "wordpiece", "--decoder", tokenizers / "gpt2"]
    given = arguments if "--encoder" in arguments else [*arguments, *sides[:2]]
    out, err = refrag(*given, *sides[2:], code=2)
    assert out == "" and message in err and err.strip().count("\n") == 0
