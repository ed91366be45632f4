"""Atomic files, README tables and pages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from latentlab_shared.errors import UserError
from latentlab_shared.files import atomic_path, read_json, read_npy, to_json, write_json
from latentlab_shared.plots import html_table, image, new_figure, save_png, write_page
from latentlab_shared.provenance import commit, machine


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"v": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"v": 1} and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_arrays_are_mapped_and_damaged_ones_are_one_line(tmp_path: Path) -> None:
    path, values = tmp_path / "a.npy", np.arange(200.0).reshape(50, 4)
    for array in (values, values[:0], values[0]):
        np.save(path, array)
        assert np.array_equal(read_npy(path), array)
    np.save(path, values)
    assert isinstance(read_npy(path), np.memmap)
    whole = path.read_bytes()
    huge = whole.replace(b"(50, 4)", b"(9" + b"9" * 30 + b", 4)")
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "many.npz", values)
    others = [(tmp_path / name).read_bytes() for name in ("pickled.npy", "many.npz")]
    for damaged in (b"", whole[:7], whole[:90], whole[:-1], huge, whole.replace(b"{'descr", b"{{'desc"), *others):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="the file is damaged") as error:
            read_npy(path, "Make it again")
        assert "\n" not in str(error.value) and "Make it again" in str(error.value)
    with pytest.raises(UserError, match="No such file"):
        read_npy(tmp_path / "none.npy")


def test_a_file_where_a_folder_is_needed_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        write_json(tmp_path / "file" / "a.json", {})


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom latentlab_shared.files import write_json\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from latentlab_shared.errors import RunFailed\n"
        "try: write_json(Path(sys.argv[1]), list(range(10000)))\nexcept RunFailed as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")], capture_output=True, text=True)
    assert "the disk is full" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"{", b"\xff\xff", b"", b"[" * 10**5, b"1" * 5000])
def test_bad_json_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.json"):
        read_json(tmp_path / "bad.json")


def test_numpy_and_non_finite_values_have_a_json_form() -> None:
    value = {"a": np.float32(0.5), "b": np.arange(3), "c": float("inf"), "d": Path("x"), "e": (1, None, True)}
    assert json.loads(to_json(value)) == {"a": 0.5, "b": [0, 1, 2], "c": None, "d": "x", "e": [1, None, True]}


def test_a_page_stands_alone(tmp_path: Path) -> None:
    figure, (axis,) = new_figure()
    axis.plot([1, 2, 3], [0.1, 0.3, 0.35])
    png = save_png(figure, tmp_path / "p.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    page = write_page(
        tmp_path / "i.html",
        "A <b> title",
        "lead",
        [("Rows", html_table([{"a": "<x>", "b": 0.51239}])), ("Plot", image(png))],
    )
    text = page.read_text()
    assert "A &lt;b&gt; title" in text and "&lt;x&gt;" in text and "0.512" in text
    assert "data:image/png;base64," in text and "http" not in text.replace("http-equiv", "")


def test_where_a_figure_came_from(tmp_path: Path) -> None:
    assert "cores" in machine() and os.uname().nodename not in machine()
    assert commit(tmp_path / "nothing.py") is None
