"""The folds' protocol on small built-in articles, from files to tables."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from latentlab_shared.encoders import TinyEncoder
from latentlab_shared.errors import UserError
from rsr_net.config import ModelConfig, RsrConfig, TrainConfig
from rsr_net.data.embed import embed_examples
from rsr_net.evaluation import ablation
from rsr_net.evaluation.ablation import run_ablation, write_ablation
from rsr_net.evaluation.baselines import (
    SkipMlp,
    closed_form_baselines,
    mlp_baseline,
    ridge_baseline,
    seed_network,
    seed_predictions,
)
from rsr_net.evaluation.folds import load_fold, run_folds, write_tables
from rsr_net.evaluation.halting import HaltingHead, states_and_signs
from rsr_net.evaluation.tables import pooled
from rsr_net.model.refiner import Refiner
from rsr_net.sample import generate
from rsr_net.training.ridge import article_matrix, target_matrix

TINY = RsrConfig("rsr", ModelConfig(hidden_dim=8, latent_dim=4, heads=2, steps=2), TrainConfig(epochs=1, cross_fits=2))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    examples = generate(60)
    parts = {"train": examples[:30], "val": examples[30:40], "short_train": examples[40:]}
    for name, part in parts.items():
        rows = [{"id": e.id, "article": "\n".join(e.sentences), "highlights": "\n".join(e.highlights)} for e in part]
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.write("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def tables(data, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    return work, run_folds(data, work, encoder="tiny", seeds=(0, 1), folds=2, config=TINY)


def test_every_article_is_tested_once_and_in_no_fold_fitted_on():
    full, short = generate(20), generate(8, 1)
    tested = []
    for number in range(4):
        fold = load_fold(full, short, number, 4, "tiny", None)
        ids = [{e.id for e in part.examples} for part in (fold.train, fold.valid, fold.test)]
        assert not ids[0] & ids[1] and not ids[0] & ids[2] and not ids[1] & ids[2]
        assert ids[0] | ids[1] | ids[2] == {e.id for e in full + short}
        assert {e.id for e in short} <= ids[0]
        assert [v.id for v in fold.train.vectors] == [e.id for e in fold.train.examples]
        tested += [e.id for e in fold.test.examples]
    assert sorted(tested) == sorted(e.id for e in full)


def test_lsa_sees_neither_validation_nor_test_articles():
    full, short = generate(40), generate(20, 1)
    fold = load_fold(full, short, 0, 4, "lsa", None)
    changed = [replace(e, sentences=("zebra quagga okapi.",)) for e in full]
    held = {e.id for e in (*fold.valid.examples, *fold.test.examples)}
    other = load_fold([c if e.id in held else e for e, c in zip(full, changed, strict=True)], short, 0, 4, "lsa", None)
    for a, b in zip(fold.train.vectors, other.train.vectors, strict=True):
        np.testing.assert_array_equal(a.doc, b.doc)


def test_tables_hold_every_baseline_with_intervals(tables):
    found = tables[1]
    assert found["about"]["articles"] == 40 and found["about"]["seeds"] == [0, 1]
    embedding = {row["name"]: row for row in found["embedding"]}
    assert {"document", "lead", "ridge [document]", "ridge [document, lead]", "MLP of as many numbers"} < set(embedding)
    assert embedding["the seed's network, as written"]["metrics"]["r2"] < 0
    low, high = embedding["refiner"]["interval"]["r2"]
    assert low < embedding["refiner"]["metrics"]["r2"] < high
    assert embedding["refiner"]["metrics"] == pytest.approx(
        {k: v for k, v in found["steps"][2]["metrics"].items() if k in embedding["refiner"]["metrics"]}, nan_ok=True
    )
    assert [row["metrics"]["step"] for row in found["steps"]] == [0, 1, 2, 4, 6]
    radius, chosen = found["convergence"]
    assert 0 < radius["metrics"]["smallest"] <= radius["metrics"]["median"] <= radius["metrics"]["largest"]
    assert 0 <= chosen["metrics"]["smallest"] <= chosen["metrics"]["largest"] <= 2
    extraction = {row["name"]: row["metrics"] for row in found["extraction"]}
    assert extraction["LEAD-3"]["share_of_gap"] == 0 and extraction["nearest to the true summary"]["share_of_gap"] == 1
    assert extraction["greedy oracle"]["rougeLsum"] > extraction["LEAD-3"]["rougeLsum"]
    assert all(0 <= row["metrics"]["ece"] <= 1 for row in found["confidence"])


def test_finished_folds_are_not_run_again_and_a_lost_one_comes_back_the_same(tables, data):
    work, found = tables
    files = sorted(work.glob("tiny-*.json"))
    assert len(files) == 4
    text = files[1].read_text()
    files[1].unlink()
    stamps = [path.stat().st_mtime_ns for path in files if path.exists()]
    again = run_folds(data, work, encoder="tiny", seeds=(0, 1), folds=2, config=TINY)
    assert files[1].read_text() == text
    assert [path.stat().st_mtime_ns for path in files if path != files[1]] == stamps
    assert json.dumps(again) == json.dumps(found)


def test_other_settings_do_not_reuse_finished_folds(tables, data):
    work, found = tables
    wider = replace(TINY, model=replace(TINY.model, heads=1))
    other = run_folds(data, work, encoder="tiny", seeds=(0,), folds=2, config=wider)
    assert other["embedding"] != found["embedding"]


def test_tables_become_files(tables, tmp_path):
    paths = write_tables(tmp_path, tables[1], "tiny", (0, 1), "rsr-net folds")
    assert {path.name for path in paths} == {
        f"{name}_tiny.json"
        for name in ("embedding", "differences", "steps", "convergence", "extraction", "confidence", "stopping")
    }
    held = json.loads(paths[0].read_text())
    assert held["command"] == "rsr-net folds" and held["seeds"] == [0, 1] and held["machine"] and held["rows"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="train.jsonl.gz: there is no such file"):
        run_folds(tmp_path, tmp_path, encoder="tiny")


def test_pooling_averages_seeds_and_keeps_articles_in_order():
    done = [
        {"seed": 0, "ids": ["b", "c"], "x": [1.0, 2.0]},
        {"seed": 0, "ids": ["a"], "x": [3.0]},
        {"seed": 1, "ids": ["a"], "x": [5.0]},
        {"seed": 1, "ids": ["c", "b"], "x": [4.0, None]},
    ]
    found = pooled(done, "x")
    assert found[[0, 2]].tolist() == [4.0, 3.0] and np.isnan(found[1])


# -- baselines ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vectors():
    articles = list(embed_examples(generate(60), TinyEncoder(dim=16)))
    return articles[:40], articles[40:50], articles[50:]


def test_the_ridge_baseline_is_ridge_regression(vectors):
    from sklearn.linear_model import Ridge

    train, valid, test = vectors
    x, y = article_matrix(train)[:, :32], target_matrix(train)
    found = ridge_baseline(train, valid, test, 2)
    errors, answers = [], []
    for penalty in (0.03, 0.1, 0.2, 0.4, 0.8, 2.0):
        model = Ridge(alpha=penalty * x.var(0).mean() * len(x), solver="svd").fit(x, y)
        errors.append(((model.predict(article_matrix(valid)[:, :32]) - target_matrix(valid)) ** 2).sum())
        answers.append(model.predict(article_matrix(test)[:, :32]))
    np.testing.assert_allclose(found, answers[int(np.argmin(errors))], atol=1e-4)


def test_the_network_has_the_size_it_is_asked_for_and_learns(vectors):
    train, valid, test = vectors
    for wanted in (2_000, 20_000):
        size = sum(p.numel() for p in SkipMlp(16, wanted).parameters())
        assert abs(size - wanted) <= 4 * 16 + 1
    state = torch.get_rng_state()
    found = mlp_baseline(train, valid, test, parameters=4_000, seed=0, epochs=60)
    assert torch.equal(torch.get_rng_state(), state)
    target = target_matrix(test)
    named = {name: work() for name, work in closed_form_baselines(train, valid, test).items()}
    assert ((found - target) ** 2).sum() < ((named["mean of the training summaries"] - target) ** 2).sum()
    np.testing.assert_array_equal(found, mlp_baseline(train, valid, test, parameters=4_000, seed=0, epochs=60))


def test_the_seeds_network_is_worse_than_the_mean_and_mended_it_is_less_so(vectors):
    train, _, test = vectors
    target = target_matrix(test)

    def off(mended):
        y = seed_predictions(seed_network(train, seed=0, mended=mended), test)
        return float(((y - target) ** 2).sum())

    assert off(False) > off(True) > 0 and off(False) > ((target - target_matrix(train).mean(0)) ** 2).sum()


def test_the_ablation_compares_each_variant_with_the_recipe_and_goes_on(data, tmp_path, monkeypatch):
    kept = ("recipe", "one head", "no retrieval loss")
    monkeypatch.setattr(ablation, "CHANGES", {name: ablation.CHANGES[name] for name in kept})
    monkeypatch.setattr(ablation.RsrConfig, "default", lambda recipe, width=16: TINY)
    rows = run_ablation(data, tmp_path, encoder="tiny", folds=2)
    assert [row["name"] for row in rows] == [*kept, *ablation.STOPS, ablation.FULL_ONLY, *ablation.SEED_FORMS]
    for row in rows[1:]:
        low, high = row["interval"]["r2_change"]
        change = row["metrics"]["r2"] - rows[0]["metrics"]["r2"]
        assert row["metrics"]["r2_change"] == pytest.approx(change, abs=1e-6) and low <= change <= high
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert run_ablation(data, tmp_path, encoder="tiny", folds=2) == rows
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps
    assert run_ablation(data, tmp_path, encoder="tiny", folds=2, few=1)[0]["metrics"] != rows[0]["metrics"]
    path = write_ablation(tmp_path, rows, command="rsr-net folds --ablate", data="articles", seeds=(0,))
    assert json.loads(path.read_text())["rows"][0]["name"] == "recipe"


def test_a_halting_head_stops_where_it_sees_no_gain(vectors):
    """An article whose steps lead to its summary goes on to the end, one whose steps lead away does not begin."""
    train, _, test = vectors
    refiner = Refiner(replace(TINY.model, input_dim=train[0].doc.size, steps=3))
    with torch.no_grad():
        refiner.gain.zero_()  # every step goes towards zero ...
    near = torch.zeros(len(train), train[0].doc.size)
    far = torch.from_numpy(target_matrix(train)) * 2
    for starts, steps in ((near, 0), (far, None)):
        states, signs = states_and_signs(refiner, train, 3, starts)
        errors = ((states - target_matrix(train)) ** 2).sum(-1)
        helps = errors[1:] < errors[:-1]
        assert (helps[0].all() and not helps.all()) if steps is None else not helps.any()
        head = HaltingHead(refiner, train, starts)
        if steps == 0:
            y, used = head.refine(refiner, test, 3)
            assert (used == 0).all() and np.array_equal(y, states_and_signs(refiner, test, 3)[0][0])
        else:  # ... which helps at first and then no more, and the number of the step says so
            sure = np.stack([head.going_on(before) >= 0.5 for before in signs])
            assert (sure == helps).mean() > 0.9
