"""What `make demo` wrote: run folders and model cards alike, answers of one shape, a page that stands by itself.

The tutorials of the site run on its models. `make check-demo` runs these tests, after the demo; without its folder they
are skipped.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from workspace import ROOT

DEMO = Path(os.environ.get("LATENTLAB_DEMO", ROOT / "runs" / "demo"))
SYSTEMS = ("rsr_net", "seq2seq_keras", "clara_absa", "nrms", "refrag")
# Where the tutorials' models stand, which are those that the demo trained.
MODELS = {
    "rsr_net": "runs/rsr_net/sample",
    "seq2seq_keras": "runs/seq2seq_keras/small",
    "clara_absa": "runs/clara_absa/sample",
    "nrms": "runs/nrms/sample",
    "refrag": "runs/refrag/questions",
}
HEADINGS = ("Use", "Training data", "Validation", "Limits", "Technical specifications")

pytestmark = [
    pytest.mark.demo,
    pytest.mark.skipif(not (DEMO / "results.json").is_file(), reason="run make demo first"),
]


def steps() -> list[dict[str, Any]]:
    """Every command of the demo with what it printed."""
    if not (DEMO / "results.json").is_file():
        return []
    return list(json.loads((DEMO / "results.json").read_text(encoding="utf-8"))["steps"])


@pytest.mark.parametrize("name", SYSTEMS)
def test_run_folders_are_alike(name: str) -> None:
    run = DEMO / name
    for part in ("config.json", "environment.json", "metrics.jsonl", "results.json", "README.md"):
        assert (run / part).is_file(), part
    for part in ("checkpoints", "plots"):
        assert any((run / part).iterdir()), part
    assert (run / "report.html").is_file()
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    keys = {"date", "command", "seed", "commit", "python", "machine", "packages", "data"}
    assert keys <= set(environment), keys - set(environment)
    assert environment["command"].startswith(("rsr-net", "seq2seq-keras", "clara-absa", "nrms", "refrag"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    numbers = [row["step"] for row in rows]
    assert rows and numbers == sorted(numbers) and all(isinstance(n, int) for n in numbers)
    leftovers = [p.name for p in run.rglob("*") if p.name.endswith(".tmp") or p.suffix in (".pt", ".pkl", ".pickle")]
    assert leftovers == []


@pytest.mark.parametrize("name", SYSTEMS)
def test_model_cards_are_alike(name: str) -> None:
    card = (DEMO / name / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# ")
    found = re.findall(r"^## (.+)$", card, flags=re.MULTILINE)
    assert [h for h in HEADINGS if h in found] == list(HEADINGS) == [h for h in found if h in HEADINGS]
    for section in re.split(r"^## .+$", card, flags=re.MULTILINE)[1:]:
        assert section.strip()


@pytest.mark.parametrize("step", steps(), ids=lambda step: step["command"][:40])
def test_every_answer_is_one_json_object(step: dict[str, Any]) -> None:
    assert isinstance(step["result"], dict) and step["result"]
    assert isinstance(step["seconds"], float)


def test_the_page_stands_by_itself() -> None:
    page = (DEMO / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page) and "<script" not in page
    assert page.count("data:image/png;base64,") >= len(SYSTEMS)
    for name in SYSTEMS:
        assert f">{name}<" in page
    assert re.search(r"commit \w{7,}", page) or "commit none" in page


def blocks(name: str) -> list[str]:
    page = (ROOT / "docs" / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_tutorial_runs_on_the_model_of_the_demo(name: str, tmp_path: Path) -> None:
    model = tmp_path / MODELS[name]
    model.parent.mkdir(parents=True)
    model.symlink_to(DEMO / name)
    program = "\n".join(blocks(name))
    assert "assert" in program
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=250,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout, done.stderr[-3000:]
