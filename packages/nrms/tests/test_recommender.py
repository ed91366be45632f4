"""The recommender against a slow one, its options, and what it does with odd requests."""

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from factory import TOPICS, make_model, make_news
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlab_shared.errors import UserError
from nrms.data.types import News
from nrms.inference import Catalogue, Recommender
from nrms.inference.catalogue import Entry, Filter
from nrms.inference.diversity import diversify
from nrms.inference.search import GraphSearch, all_scores, top_rows
from nrms.model.folder import LoadedModel

COUNT = 120
NEWS = make_news(COUNT)
IDS = [n.id for n in NEWS]


@pytest.fixture(scope="module")
def recommender(model: LoadedModel) -> Recommender:
    made = Recommender(model)
    made.add(NEWS)
    return made


def slow_scores(model: LoadedModel, history: list[str]) -> dict[str, float]:
    """One article at a time, half precision as in the store."""
    vectors = {n.id: model.encode_titles([n.title])[0].numpy().astype("f2").astype("f4") for n in NEWS}
    read = list(dict.fromkeys(reversed(history)))[: model.config.history_length][::-1]
    rows = torch.from_numpy(np.stack([vectors[id] for id in read]))[None]
    with torch.inference_mode():
        user = model.model.encode_user(rows, torch.ones(1, len(read), dtype=torch.bool))[0].numpy()
    return {id: float(vector @ user) for id, vector in vectors.items()}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(IDS), min_size=1, max_size=12), st.integers(0, COUNT + 10))
def test_ranks_as_the_slow_form(recommender: Recommender, history: list[str], k: int) -> None:
    scores = slow_scores(recommender.state.model, history)
    answer = recommender.recommend(history, k)
    left = [id for id in IDS if id not in history]
    assert len(answer.items) == min(k, len(left)) and answer.fallback is None and answer.missing == ()
    given = [item.score for item in answer.items]
    assert given == sorted(given, reverse=True)
    assert np.allclose(given, [scores[item.id] for item in answer.items], atol=1e-4)
    best = sorted(left, key=lambda id: -scores[id])[:k]
    assert np.allclose(sorted(scores[id] for id in best), sorted(scores[i.id] for i in answer.items), atol=1e-4)


def test_odd_requests_are_defined(recommender: Recommender) -> None:
    assert recommender.recommend(["N1"], 0).items == ()
    assert len(recommender.recommend(["N1"], 10**6).items) == COUNT - 1
    assert recommender.recommend(["N1", "N2", "N1"], 5) == recommender.recommend(["N2", "N1"], 5)
    assert recommender.recommend(["gone", "N1", "gone"], 5).missing == ("gone",)
    chosen = recommender.recommend(["N1"], 9, candidates=["N5", "N5", "gone", "N1", "N7"])
    assert {i.id for i in chosen.items} == {"N5", "N7"} and chosen.missing == ("gone",)
    assert {i.id for i in recommender.recommend(["N1"], 9, candidates=["N1"], exclude_read=False).items} == {"N1"}
    assert recommender.recommend(["N1"], 9, candidates=[]).items == ()
    assert recommender.recommend(["N1"], 3, categories=["no such topic"]).items == ()
    for wrong in ({"k": -1}, {"diversity": 1.5}):
        with pytest.raises(UserError):
            recommender.recommend(["N1"], **wrong)


def test_equal_scores_come_in_the_order_of_the_catalogue(model: LoadedModel) -> None:
    made = Recommender(model)
    made.add([replace(n, title="w1 w2 w3") if i % 3 else n for i, n in enumerate(NEWS)])
    same = [id for i, id in enumerate(IDS) if i % 3]
    rng = np.random.default_rng(0)
    for _ in range(5):
        asked = rng.permutation(IDS).tolist()
        items = made.recommend(["N0"], COUNT, candidates=asked).items
        assert [item.id for item in items if item.id in same] == same
        assert len({item.score for item in items if item.id in same}) == 1


def test_filters(recommender: Recommender) -> None:
    since = NEWS[100].published
    answer = recommender.recommend(["N1"], COUNT, categories=TOPICS[:2], published_since=since, exclude=["N102"])
    expected = {n.id for n in NEWS[100:] if n.category in TOPICS[:2] and n.id != "N102"}
    assert {item.id for item in answer.items} == expected
    naive = recommender.recommend(["N1"], COUNT, published_since=since.replace(tzinfo=None))
    assert len(naive.items) == COUNT - 100


def test_an_expired_article_is_not_recommended(model: LoadedModel) -> None:
    now = datetime.now(UTC)
    times = {"gone": now - timedelta(hours=1), "stays": now + timedelta(hours=1), "always": None}
    entries = tuple(Entry(id, id, expires=t and round(t.timestamp() * 1000)) for id, t in times.items())
    vectors = np.ones((3, model.config.dim), np.float16)
    made = Recommender(model, Catalogue(model.model_id, entries, vectors), popular=["gone", "always"])
    assert [i.id for i in made.recommend([], 9, history_titles=["w1 w2"]).items] == ["stays", "always"]
    assert [i.id for i in made.recommend([], 9).items] == ["always", "stays"]


def test_a_reader_without_history_gets_popular_then_recent(recommender: Recommender, model: LoadedModel) -> None:
    newest = [n.id for n in reversed(NEWS)]
    plain = recommender.recommend([], 3)
    assert (plain.fallback, [i.id for i in plain.items]) == ("recent", newest[:3])
    assert all(item.score is None for item in plain.items)
    made = Recommender(model, recommender.state.source, popular=["N7", "unknown", "N3"])
    answer = made.recommend(["unknown too"], 4)
    assert answer.fallback == "popular" and answer.missing == ("unknown too",)
    assert [i.id for i in answer.items] == ["N7", "N3", *newest[:2]]
    assert [i.id for i in made.recommend([], 2, categories=[TOPICS[0]]).items][0] == "N3"
    assert {i.id for i in made.recommend([], 9, candidates=["N3", "N50", "zz"]).items} == {"N3", "N50"}


def test_titles_are_encoded_now_and_count_like_articles(recommender: Recommender) -> None:
    by_id = recommender.recommend(["N4", "N9"], 5)
    by_title = recommender.recommend(["N4"], 6, history_titles=[NEWS[9].title, "  "])
    scores = {i.id: i.score for i in by_title.items if i.id != "N9"}
    shared = [i for i in by_id.items if i.id in scores]
    assert len(shared) >= 4
    assert np.allclose([i.score for i in shared], [scores[i.id] for i in shared], rtol=5e-3, atol=5e-3)
    assert recommender.recommend([], 2, history_titles=["", " "]).fallback == "recent"
    assert recommender.recommend([], 2, history_titles=["😀 漢字 \0"]).fallback is None


def test_the_last_articles_of_a_long_history_count(recommender: Recommender, model: LoadedModel) -> None:
    keep = model.config.history_length
    long = IDS[:40]
    full, last = recommender.recommend(long, 5), recommender.recommend(long[-keep:], 5, exclude=long)
    assert full.items == last.items


def test_reasons_add_up_to_the_score(recommender: Recommender) -> None:
    answer = recommender.recommend(["N1", "N2", "N3"], 4, explain=True)
    assert sum(a.weight for a in answer.attention) == pytest.approx(1, abs=1e-5)
    assert [a.id for a in answer.attention] == ["N1", "N2", "N3"]
    weights = {a.id: a.weight for a in answer.attention}
    for item in answer.items:
        assert sum(r.contribution for r in item.reasons) == pytest.approx(item.score, abs=1e-3)
        assert [r.contribution for r in item.reasons] == sorted((r.contribution for r in item.reasons), reverse=True)
        assert all(r.weight == weights[r.id] for r in item.reasons)
    assert recommender.recommend(["N1"], 1).items[0].reasons == ()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(0, 14), st.floats(0, 1), st.integers(0, 10**6))
def test_diversity_is_the_greedy_rule(count: int, k: int, diversity: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, scores = rng.standard_normal((count, 4)).astype("f4"), rng.standard_normal(count).astype("f4")
    picked = diversify(vectors, scores, k, diversity)
    assert len(picked) == min(k, count) == len(set(picked))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    span = scores.max() - scores.min()
    relevance = (scores - scores.min()) / span if span else np.ones(count)
    for step, place in enumerate(picked):

        def value(i: int, before: list[int] = picked[:step]) -> float:
            nearest = max((float(unit[i] @ unit[j]) for j in before), default=0.0)
            return (1 - diversity) * float(relevance[i]) - diversity * nearest

        left = [i for i in range(count) if i not in picked[:step]]
        assert value(place) >= max(map(value, left)) - 1e-4


def test_no_diversity_keeps_the_order_and_some_changes_it(recommender: Recommender) -> None:
    plain = [i.id for i in recommender.recommend(["N1", "N30"], 8).items]
    varied = recommender.recommend(["N1", "N30"], 8, diversity=0.7)
    assert [i.id for i in varied.items][0] == plain[0] and [i.id for i in varied.items] != plain


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, -1.0, float("-inf")]), max_size=30), st.integers(0, 40))
def test_top_rows_breaks_ties_by_place(values: list[float], k: int) -> None:
    expected = [i for i in sorted(range(len(values)), key=lambda i: (-values[i], i)) if values[i] != float("-inf")]
    assert top_rows(torch.tensor(values), k).tolist() == expected[:k]


@pytest.mark.parametrize("count", [0, 1, 2047, 2049, 5000])
def test_scores_of_halves_are_summed_in_float32(count: int) -> None:
    rng = np.random.default_rng(count)
    matrix, user = rng.standard_normal((count, 16)).astype("f2"), rng.standard_normal(16).astype("f4")
    given = all_scores(torch.from_numpy(matrix), torch.from_numpy(user)).numpy()
    assert np.allclose(given, matrix.astype("f4") @ user, atol=1e-5)


def test_the_graph_finds_what_the_scan_finds_and_grows(model: LoadedModel) -> None:
    pytest.importorskip("usearch")
    news = make_news(3000, seed=3)
    exact, graph = Recommender(model), Recommender(model, search="usearch")
    exact.add(news)
    graph.add(news[:2000])
    first = graph.state.source
    changed = replace(news[5], title="w1 w1 w2")
    graph.add([*news[2000:], changed])
    exact.add([changed])
    source = graph.state.source
    assert isinstance(source, GraphSearch) and source._graph is first._graph  # completed, not built again
    users = np.stack([exact.user_vector([f"N{i}", f"N{i + 7}"]) for i in range(0, 2900, 100)])
    assert source.recall(users) >= 0.95
    for wanted in (Filter((TOPICS[1],)), Filter(exclude=frozenset(n.id for n in news[:2950]))):
        assert {e.id for e in source.search(users[0], 5, wanted).entries} == {
            e.id for e in exact.state.source.search(users[0], 5, wanted).entries
        }
    assert all(int(e.id[1:]) < 2000 for e in first.search(users[0], 50, Filter()).entries)  # the old state stays whole


def test_save_and_load(tmp_path: Path, recommender: Recommender, model: LoadedModel) -> None:
    recommender.save_pretrained(tmp_path / "m")
    loaded = Recommender.from_pretrained(tmp_path / "m")
    assert loaded.model_id == model.model_id
    assert isinstance(loaded.state.source.catalogue.vectors, np.memmap)
    assert (
        loaded.recommend(["N1"], 7, explain=True).to_dict() == recommender.recommend(["N1"], 7, explain=True).to_dict()
    )
    loaded.add([News("late", "w1")])
    assert len(loaded) == COUNT + 1
    (tmp_path / "m" / "catalogue" / "articles.jsonl").write_text('["a", "b"]\n')
    with pytest.raises(UserError, match="catalogue is damaged"):
        Recommender.from_pretrained(tmp_path / "m")


def test_vectors_of_another_model_are_refused(tmp_path: Path, recommender: Recommender) -> None:
    other = make_model(tmp_path / "other", seed=9)
    with pytest.raises(UserError, match="another model"):
        recommender.swap(model=other)
    with pytest.raises(UserError, match="another model"):
        Recommender(other, recommender.state.source)
    assert recommender.recommend(["N1"], 1).items


def test_a_switch_in_the_middle_of_requests_never_mixes(tmp_path: Path) -> None:
    """Two models with opposite vectors: a mixed answer would have scores of the wrong sign."""
    models = [make_model(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    catalogues, expected = [], {}
    for loaded in models:
        made = Recommender(loaded)
        made.add(NEWS)
        catalogues.append(made.state.source.catalogue)
        expected[loaded.model_id] = made.recommend(["N1", "N2"], 5).items
    serving, stop, seen = Recommender(models[0], catalogues[0]), threading.Event(), set()
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            while not stop.is_set():
                answer = serving.recommend(["N1", "N2"], 5)
                assert answer.items == expected[answer.model_id]
                seen.add(answer.model_id)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        serving.swap(models[turn % 2], catalogues[turn % 2])
    while len(seen) < 2 and not failures:
        serving.swap(models[turn % 2], catalogues[turn % 2])
        turn += 1
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures and len(seen) == 2
