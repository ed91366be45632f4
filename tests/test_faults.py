"""Every command where the disk is full, the folder is read-only, or a secret is about: one line, and nothing told."""

import json
from pathlib import Path

import pytest
from calls import call
from fuzz import all_readers
from workspace import members

from latentlab_shared.provenance import environment

TARGETS = {name: target for member in members() for name, target in member.scripts.items()}
CANARY = "canary-5f2a91c7"
SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "NRMS_TOKEN", "REFRAG_TOKEN", "OPENAI_API_KEY")
READ_ONLY = Path("/sys")  # nobody makes folders there, not even root

pytestmark = pytest.mark.slow


def inputs(folder: Path) -> dict[str, list[str]]:
    """A command line for each system that reads something small and writes it in another form."""
    readers = all_readers()
    for name, file in (
        ("rsr_net-jsonl", "train.jsonl"),
        ("seq2seq_keras-tsv", "rows.tsv"),
        ("clara_absa-jsonl", "train.jsonl"),
    ):
        home = folder / name.partition("-")[0]
        home.mkdir()
        (home / file).write_bytes(readers[name].good * (400 if name != "clara_absa-jsonl" else 1))
    rows = [{"text": f"It rained for {n} days in the city.", "summary": f"Rain for {n} days"} for n in range(400)]
    (folder / "seq2seq_keras" / "rows.tsv").unlink()
    (folder / "seq2seq_keras" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    aspect = {"term": "food", "polarity": "positive", "start": 4, "end": 8}
    reviews = [{"id": str(n), "text": f"The food is good {n}", "aspects": [aspect]} for n in range(400)]
    (folder / "clara_absa" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reviews))
    return {
        "rsr-net": ["prepare", "--source", str(folder / "rsr_net"), "--output-dir"],
        "nrms": ["prepare", "--source", "sample", "--output-dir"],
        "seq2seq-keras": ["prepare", "--source", str(folder / "seq2seq_keras"), "--output-dir"],
        "clara-absa": ["prepare", "--source", str(folder / "clara_absa"), "--output-dir"],
    }


@pytest.mark.parametrize("name", ["rsr-net", "nrms", "seq2seq-keras", "clara-absa"])
def test_a_full_disk_and_a_read_only_folder_are_one_line(name: str, tmp_path: Path) -> None:
    line = inputs(tmp_path)[name]
    secrets = dict.fromkeys(SECRETS, CANARY)
    full, good = tmp_path / "full", tmp_path / "good"
    session = call(TARGETS[name], name, [[*line, str(full), "-q"]], tmp_path, file_bytes=100, **secrets)
    (said,) = session.said
    assert said.code in (1, 2) and said.stdout == "" and said.stderr.strip().count("\n") == 0, said
    assert said.stderr.startswith(("error: ", "failed: ")) and "disk is full" in said.stderr, said.stderr
    assert not [p for p in full.rglob("*") if p.is_file() and p.suffix == ".tmp"]
    nowhere = str(READ_ONLY / "lab")
    lines = [[*line, str(good), "--json", "-v"], [*line, nowhere, "-q"], ["train", "--output-dir", nowhere, "-q"]]
    worked, refused, untrained = call(TARGETS[name], name, lines, tmp_path, **secrets).said
    assert worked.code == 0 and isinstance(json.loads(worked.stdout), dict), worked
    if READ_ONLY.is_dir():
        for told_off in (refused, untrained):
            assert told_off.code == 2 and told_off.one_line and told_off.stderr.startswith("error: "), told_off
    told = worked.stdout + worked.stderr + refused.stderr + said.stderr
    assert CANARY not in told
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("latentlab-cache", [["stats", str(READ_ONLY / "none")]]),
        ("refrag", [["train", "--output-dir", str(READ_ONLY / "lab"), "-q"]]),
    ],
)
def test_no_folder_can_be_made_where_none_may_be(name: str, lines: list[list[str]], tmp_path: Path) -> None:
    (said,) = call(TARGETS[name], name, lines, tmp_path).said
    assert said.code == 2 and said.one_line and said.stderr.startswith("error: "), said


def test_what_a_run_records_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, CANARY)
    assert CANARY not in json.dumps(environment(0, {}, ()))


def test_a_password_in_an_address_is_not_repeated(tmp_path: Path) -> None:
    address = f"postgresql://reader:{CANARY}@127.0.0.1:1/news"
    lines = [["models", "--database", address], ["models", "--database", address, "-v"]]
    plain, verbose = call(TARGETS["nrms"], "nrms", lines, tmp_path).said
    assert plain.code in (1, 2) and plain.one_line, plain
    assert CANARY not in plain.stderr and CANARY not in verbose.stderr.splitlines()[-1]
