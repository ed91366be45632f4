"""Samples and batches, the loop, and going on after every kind of end."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from latentlab_shared.errors import RunFailed, UserError
from latentlab_shared.runs import RunFolder
from nrms.config import ModelConfig, NrmsConfig, TrainConfig
from nrms.data.log import ClickLog, open_log
from nrms.data.prepare import write_part
from nrms.data.vocabulary import WordVocabulary
from nrms.model.folder import load_model_dir
from nrms.model.nrms import NRMS
from nrms.model.scoring import score_log
from nrms.sample.generator import SampleConfig, generate, write_sample
from nrms.training.trainer import MindDataset, learning_rate, mind_collate_fn, train

TINY = NrmsConfig(
    model=ModelConfig(heads=2, head_dim=4, word_dim=8, query_dim=6, title_length=8, history_length=6),
    train=TrainConfig(epochs=2, batch_size=16, learning_rate=1e-2, patience=0, log_every=2),
)
SMALL_SAMPLE = SampleConfig(articles=120, users=20, train=60, dev=20, candidates=8)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums of several threads are rounded in another order: "the same bits" means with the same number of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_sample(folder, SMALL_SAMPLE)
    return folder


def make_log(data: Path, part: str = "train") -> tuple[ClickLog, WordVocabulary]:
    from nrms.data.mind import read_news

    words = WordVocabulary.build(n.title for n in read_news(data / part / "news.tsv"))
    return open_log(data / part, words, TINY.model), words


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / name / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def changed(config: NrmsConfig = TINY, **options: object) -> NrmsConfig:
    return replace(config, train=replace(config.train, **options))  # type: ignore[arg-type]


# -- samples and batches ----------------------------------------------------------------------------------------------


def test_samples_are_a_click_and_negatives_of_its_impression(data: Path) -> None:
    log, _ = make_log(data)
    dataset = MindDataset(log, negatives=4, seed=1)
    assert len(dataset) == int(log.known_labels().sum()) and dataset.left_out == 0
    labels = np.split(log.known_labels(), log.candidates.offsets[1:-1])
    for index in range(len(dataset)):
        sample, impression = dataset[index], int(dataset.impressions[index])
        shown = log.candidates[impression]
        clicked, ignored = shown[labels[impression] == 1], shown[labels[impression] == 0]
        assert sample.candidates[0] in clicked and set(sample.candidates[1:]) <= set(ignored)
        assert len(set(sample.candidates[1:])) == min(4, len(ignored))  # none twice
        assert sample.history.tolist() == log.histories[log.history_of[impression]].tolist()
        assert len(sample.history) <= TINY.model.history_length
    first = [dataset[i].candidates.tolist() for i in range(len(dataset))]
    assert first == [dataset[i].candidates.tolist() for i in range(len(dataset))]
    dataset.set_epoch(1)
    assert first != [dataset[i].candidates.tolist() for i in range(len(dataset))]


def test_readers_count_alike_when_balanced(data: Path) -> None:
    log, _ = make_log(data)
    dataset = MindDataset(log, balance=True)
    weights = np.array([dataset[i].weight for i in range(len(dataset))])
    readers = log.user_of[dataset.impressions]
    assert weights.mean() == pytest.approx(1) and len(set(np.bincount(readers))) > 2
    shares = np.bincount(readers, weights)
    assert np.allclose(shares[shares > 0], len(dataset) / len(set(readers.tolist())))
    assert mind_collate_fn([dataset[i] for i in (3, 0)]).weight.tolist() == pytest.approx(weights[[3, 0]].tolist())
    assert {MindDataset(log)[i].weight for i in range(9)} == {1.0}


def test_a_batch_holds_each_article_once_and_loses_nothing(data: Path) -> None:
    log, _ = make_log(data)
    dataset = MindDataset(log, negatives=9, seed=1)  # more than there are
    samples = [dataset[i] for i in range(12)]
    batch = mind_collate_fn(samples)
    rows = {tuple(t[:n].tolist()) for t, n in zip(batch.titles, batch.title_lengths, strict=True)}
    assert len(rows) == len(batch.titles) and batch.titles[0].sum() == 0  # distinct titles here; row 0 pads
    for row, sample in enumerate(samples):
        wanted = [log.titles.tokens[r, : batch.titles.shape[1]].tolist() for r in sample.history]
        got = batch.titles[batch.history[row][batch.history_mask[row]]].tolist()
        assert got == wanted
        shown = batch.titles[batch.candidates[row][batch.candidate_mask[row]]].tolist()
        assert shown == [log.titles.tokens[r, : batch.titles.shape[1]].tolist() for r in sample.candidates]
        assert batch.candidate_mask[row].sum() == len(sample.candidates)
    assert batch.target is not None and batch.target.tolist() == [0] * 12


def test_scores_of_a_log_are_those_of_the_network_batch_by_batch(data: Path) -> None:
    log, words = make_log(data, "dev")
    torch.manual_seed(0)
    model = NRMS(TINY.model, len(words)).eval()
    scores = score_log(model, log)
    with torch.no_grad():
        for row in range(len(log)):
            tokens = torch.from_numpy(log.titles.tokens)
            lengths = torch.from_numpy(log.titles.lengths)
            read, shown = log.histories[log.history_of[row]], log.candidates[row]
            user = model.encode_user(
                model.encode_news(tokens[read], lengths[read])[None], torch.ones(1, len(read), dtype=torch.bool)
            )
            expected = model.encode_news(tokens[shown], lengths[shown]) @ user[0]
            got = torch.from_numpy(scores[log.candidates.offsets[row] : log.candidates.offsets[row + 1]])
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_learning_rate() -> None:
    config = TrainConfig(learning_rate=1.0, warmup=0.2)
    rates = [learning_rate(config, update, 10) for update in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[-1] == pytest.approx(1 / 8)
    assert all(a >= b for a, b in zip(rates[1:], rates[2:], strict=False))
    assert learning_rate(replace(config, schedule="constant"), 9, 10) == 1.0
    assert learning_rate(replace(config, schedule="cosine"), 6, 10) == pytest.approx(0.5)


# -- the loop ---------------------------------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_everything_behind(data: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    result = train(data, tmp_path / "run", changed(epochs=20, learning_rate=0.03), device="cpu", log=lines.append)
    run = RunFolder.read(tmp_path / "run")
    rows = run.metrics()
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] - 0.2
    validated = [row for row in rows if "dev_auc" in row]
    assert [row["epoch"] for row in validated] == [*range(1, 21)]
    assert result.best == max(row["dev_auc"] for row in validated)
    assert all({"train_mrr", "train_auc"} <= row.keys() for row in rows if "loss" in row)
    best = load_model_dir(tmp_path / "run")
    log = open_log(data / "dev", best.vocabulary, best.config)
    from latentlab_shared.metrics.ranking import ranking_metrics

    again = ranking_metrics(score_log(best.model, log), log.known_labels(), log.candidates.lengths).means()
    assert again["auc"] == pytest.approx(result.best, abs=1e-9)
    assert any("clicks to learn from" in line for line in lines)
    card = (tmp_path / "run" / "README.md").read_text()
    line = next(row for row in validated if row["epoch"] == result.best_epoch)
    assert f"epoch {result.best_epoch}: auc {line['dev_auc']:.4f}".lower() in card.lower().replace(
        ", mean over the dev part's impressions", ""
    )
    assert "## Limits" in card and '"heads": 2' in card


def test_the_same_seed_gives_the_same_weights_and_another_does_not(data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(data, tmp_path / name, changed(seed=seed), device="cpu")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.mark.parametrize("stop", [1, 3, 5, 8])
def test_a_resumed_run_ends_with_the_same_bits(data: Path, tmp_path: Path, stop: int) -> None:
    train(data, tmp_path / "whole", TINY, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "cut", TINY, device="cpu", stop_after=stop)
    result = train(data, tmp_path / "cut", resume=True, device="cpu")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert same(weights(tmp_path / "whole", "best"), weights(tmp_path / "cut", "best"))
    rows = [RunFolder.read(tmp_path / name).metrics() for name in ("whole", "cut")]
    assert rows[0] == rows[1] and result.epochs == 2


def test_accumulation_changes_no_result(data: Path, tmp_path: Path) -> None:
    config = replace(TINY, model=replace(TINY.model, dropout=0.0))
    train(data, tmp_path / "one", config, device="cpu")
    train(data, tmp_path / "four", changed(config, accumulate=4), device="cpu")
    one, four = weights(tmp_path / "one"), weights(tmp_path / "four")
    for name in one:
        torch.testing.assert_close(one[name], four[name], atol=1e-4, rtol=1e-3)


def test_early_stopping_keeps_the_best(data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", changed(epochs=30, patience=2, learning_rate=0.05), device="cpu")
    values = [row["dev_auc"] for row in RunFolder.read(tmp_path / "run").metrics() if "dev_auc" in row]
    assert result.epochs < 30 and len(values) == result.epochs
    assert result.best == max(values) and values.index(max(values)) + 1 == result.best_epoch == result.epochs - 2


def test_training_in_bf16_and_with_worker_processes(data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", changed(precision="bf16", workers=1), device="cpu")
    assert result.updates == 2 * -(-result.updates // 2) and result.best is not None
    assert all(value.isfinite().all() and value.dtype == torch.float32 for value in weights(tmp_path / "run").values())


def test_without_a_dev_part_the_last_epoch_is_kept(data: Path, tmp_path: Path) -> None:
    news, log = generate(SMALL_SAMPLE)
    write_part(tmp_path / "d/train", news, log[:40])
    result = train(tmp_path / "d", tmp_path / "run", TINY, device="cpu")
    assert result.best is None and same(weights(tmp_path / "run", "best"), weights(tmp_path / "run", "last"))


def test_pretrained_vectors_are_used_and_can_be_frozen(data: Path, tmp_path: Path) -> None:
    glove = tmp_path / "glove.txt"
    words = make_log(data)[1].words
    rng = np.random.default_rng(0)
    glove.write_text("".join(f"{w} {' '.join(f'{x:.4f}' for x in rng.normal(size=5))}\n" for w in words))
    config = NrmsConfig(replace(TINY.model, freeze=True), replace(TINY.train, vectors=str(glove)))
    train(data, tmp_path / "run", config, device="cpu")
    loaded = load_model_dir(tmp_path / "run")
    assert loaded.config.word_dim == 5
    table = loaded.model.news_encoder.embedding.weight
    word = words[3]
    row = loaded.vocabulary.encode([word], 1)[0][0]
    line = next(x for x in glove.read_text().splitlines() if x.split(" ")[0] == word)
    assert table[row].tolist() == pytest.approx([float(x) for x in line.split(" ")[1:]], abs=1e-6)
    again = train(data, tmp_path / "run", config, resume=True, device="cpu")  # the width is the file's
    assert again.epochs == 2


@pytest.mark.parametrize(
    ("edit", "message"),
    [("swap", "swapped"), ("no train", "no train part"), ("config", "train.batch_size"), ("data", "not the data"),
     ("limit", "--limit"), ("twice", "not empty"), ("damage", "damaged")],
)  # fmt: skip
def test_what_a_run_refuses(data: Path, tmp_path: Path, edit: str, message: str) -> None:
    source, run = tmp_path / "d", tmp_path / "run"
    write_sample(source, SMALL_SAMPLE)
    if edit == "swap":
        (source / "train").rename(source / "x")
        (source / "dev").rename(source / "train")
        (source / "x").rename(source / "dev")
    if edit == "no train":
        (source / "train").rename(source / "x")
    if edit in ("swap", "no train"):
        with pytest.raises(UserError, match=message):
            train(source, run, TINY, device="cpu")
        return
    train(source, run, TINY, device="cpu")
    if edit == "data":
        write_sample(source, replace(SMALL_SAMPLE, seed=1))
    if edit == "damage":
        (run / "checkpoints/last/training.safetensors").write_bytes(b"x")
    with pytest.raises((UserError, RunFailed), match=message):
        train(
            source,
            run,
            changed(batch_size=32) if edit == "config" else None,
            resume=edit != "twice",
            limit=5 if edit == "limit" else None,
            device="cpu",
        )


@pytest.mark.parametrize("edit", ["bad row", "no train", "vectors", "sizes"])
def test_a_refused_training_touches_no_folder(data: Path, tmp_path: Path, edit: str) -> None:
    """Neither a new one, which would bar the corrected command, nor an earlier run that --overwrite may replace."""
    source, config = tmp_path / "d", TINY
    write_sample(source, SMALL_SAMPLE)
    train(source, tmp_path / "good", TINY, device="cpu")
    held = {path: path.read_bytes() for path in (tmp_path / "good").rglob("*") if path.is_file()}
    if edit == "bad row":
        with (source / "dev/behaviors.tsv").open("a") as log:
            log.write("x\n")
    if edit == "no train":
        (source / "train").rename(source / "x")
    if edit == "vectors":
        config = changed(vectors=str(tmp_path / "no-such.txt"))
    if edit == "sizes":
        config = replace(TINY, model=replace(TINY.model, heads=10**8))
    for run in ("new", "good"):
        with pytest.raises(UserError):
            train(source, tmp_path / run, config, overwrite=run == "good", device="cpu")
    assert not (tmp_path / "new").exists()
    assert {path: path.read_bytes() for path in (tmp_path / "good").rglob("*") if path.is_file()} == held


def test_a_loss_that_is_no_number_ends_the_run_with_one_line(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="not a number"):
        train(data, tmp_path / "run", changed(learning_rate=1e30, clip=0.0, epochs=9), device="cpu")


# -- ends -------------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from nrms.config import NrmsConfig
from nrms.training.trainer import train
import json
data, run, config, resume = sys.argv[1:5]
train(Path(data), Path(run), NrmsConfig.from_dict(json.loads(config)), resume=resume == "yes", device="cpu",
      log=lambda line: print(line, flush=True))
"""


def command(data: Path, run: Path, config: NrmsConfig, resume: bool = False) -> list[str]:
    return ["-c", PROGRAM, str(data), str(run), json.dumps(config.to_dict()), "yes" if resume else "no"]


def start(data: Path, run: Path, config: NrmsConfig, resume: bool = False) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command(data, run, config, resume)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_can_be_resumed_to_the_same_bits(data: Path, tmp_path: Path, number: int) -> None:
    config = changed(epochs=12)
    process = start(data, tmp_path / "cut", config)
    assert process.stdout is not None
    while "update 4/" not in (line := process.stdout.readline()):
        assert line, process.stderr and process.stderr.read()
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert f"KeyboardInterrupt: go on with nrms train --resume {tmp_path / 'cut'}" in errors
    held = json.loads((tmp_path / "cut/checkpoints/last/progress.json").read_text())
    assert 4 <= held["updates"] < 12 * 5
    train(data, tmp_path / "cut", resume=True, device="cpu")
    train(data, tmp_path / "whole", config, device="cpu")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


@pytest.mark.slow
@pytest.mark.timeout(900)  # twenty starts of torch, beside other tests
def test_twenty_kills_always_leave_a_loadable_checkpoint(data: Path, tmp_path: Path) -> None:
    config = changed(epochs=400, save_every=1)
    run, rng, updates = tmp_path / "cut", random.Random(0), 0
    for attempt in range(20):
        process = start(data, run, config, resume=attempt > 0)
        assert process.stdout is not None
        while not (line := process.stdout.readline()).startswith("epoch"):
            assert line, process.stderr and process.stderr.read()
        time.sleep(rng.random() * 0.5)
        process.kill()
        process.communicate(timeout=60)
        checkpoint = RunFolder.read(run).checkpoint("last")  # its checksums are verified
        assert checkpoint is not None
        reached = json.loads((checkpoint / "progress.json").read_text())["updates"]
        assert reached >= updates
        updates = reached
        load_model_dir(checkpoint)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "whole", config, device="cpu", stop_after=updates)
    assert same(weights(tmp_path / "whole"), weights(run))


@pytest.mark.slow
def test_two_processes_learn_what_one_does(data: Path, tmp_path: Path) -> None:
    config = replace(TINY, model=replace(TINY.model, dropout=0.0))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program),
         *command(data, tmp_path / "two", config)[2:]],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 process(es)" in done.stdout
    train(data, tmp_path / "one", config, device="cpu")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        # AdamW divides by the gradient's size, so the rounding of sums shows where gradients are near zero.
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=1e-3)
    rows = [[r for r in RunFolder.read(tmp_path / n).metrics() if "loss" in r] for n in ("one", "two")]
    assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]]
    assert [r["loss"] for r in rows[0]] == pytest.approx([r["loss"] for r in rows[1]], abs=1e-5)
