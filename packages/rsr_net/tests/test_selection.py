"""The choice of sentences, against a search over every set and formulas written out set by set."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlab_shared.encoders import TinyEncoder
from rsr_net import ArticleVectors, Batch, Example, Refiner
from rsr_net.config import ModelConfig
from rsr_net.data import embed_examples
from rsr_net.model.selection import (
    CANDIDATES,
    SentenceSelector,
    best_sentences,
    candidate_sets,
    repeats,
    sentence_signs,
    set_signs,
)
from rsr_net.sample import generate
from rsr_net.training.selector import fit_selector, word_counts

D = 6


def case(lengths, seed=0):
    """Made-up articles and all that a choice is made of: batch, y, y0, last read, words."""
    draw = np.random.default_rng([seed, *lengths])
    articles = []
    for length in lengths:
        sentences = draw.normal(size=(length, D))  # of any length, as BART's are
        vectors = (sentences.mean(0), sentences[:3].mean(0), sentences)
        articles.append(ArticleVectors("a", *(v.astype(np.float32) for v in vectors)))
    batch = Batch.collate(articles)
    y, y0 = (torch.from_numpy(draw.normal(size=(len(lengths), D)).astype(np.float32)) for _ in range(2))
    read = torch.from_numpy(draw.uniform(0.1, 1, size=batch.mask.shape).astype(np.float32)) * batch.mask
    words = torch.from_numpy(draw.integers(3, 40, size=batch.mask.shape).astype(np.float32)) * batch.mask
    return batch, y, y0, read / read.sum(1, keepdim=True), words


def row_of(given, row, length):
    """One article of a case, alone and without padding."""
    batch, y, y0, read, words = given
    alone = Batch(
        batch.doc[row : row + 1],
        batch.lead[row : row + 1],
        batch.sentences[row : row + 1, :length],
        batch.mask[row : row + 1, :length],
    )
    return alone, y[row : row + 1], y0[row : row + 1], read[row : row + 1, :length], words[row : row + 1, :length]


def awake(seed=0):
    """A selector with some weights that counts as fitted."""
    torch.manual_seed(seed)
    selector = SentenceSelector(hidden_dim=8)
    with torch.no_grad():
        selector.sentence_mean.normal_(std=0.3)
        selector.set_mean.normal_(std=0.3)
        selector.sentence_std.uniform_(0.5, 1.5)
        selector.set_std.uniform_(0.5, 1.5)
        for parameter in selector.parameters():
            parameter.mul_(2)
    selector.fitted.fill_(True)
    return selector


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def every_set(places, largest):
    return [chosen for size in range(1, largest + 1) for chosen in combinations(places, size)]


# -- before fitting: the set whose sum is nearest to y -----------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 999))
def test_unfitted_it_is_the_nearest_sum_of_all_sets(lengths, largest, seed):
    given_ = case(lengths, seed)
    batch, y = given_[0], given_[1].double().numpy()
    found = SentenceSelector().choose(*given_, max_sentences=largest)
    for row, length in enumerate(lengths):
        sentences = batch.sentences[row, :length].double().numpy()
        nearest = sorted(range(length), key=lambda i: -cosine(sentences[i], y[row]))[:CANDIDATES]  # noqa: B023
        score = {c: cosine(sentences[list(c)].sum(0), y[row]) for c in every_set(sorted(nearest), largest)}
        assert found[row] in score
        assert score[found[row]] == pytest.approx(max(score.values()), abs=1e-5)


@pytest.mark.parametrize("fitted", [False, True])
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), largest=st.integers(1, 8))
def test_choices_are_few_real_in_order_and_do_not_depend_on_the_neighbours(fitted, lengths, largest):
    selector = awake() if fitted else SentenceSelector()
    given_ = case(lengths)
    found = selector.choose(*given_, max_sentences=largest)
    assert found == selector.choose(*given_, max_sentences=largest)
    for row, (chosen, length) in enumerate(zip(found, lengths, strict=True)):
        assert 1 <= len(chosen) <= min(largest, length)
        assert list(chosen) == sorted(set(chosen)) and chosen[0] >= 0 and chosen[-1] < length
        assert selector.choose(*row_of(given_, row, length), max_sentences=largest) == [chosen]


@pytest.mark.parametrize("fitted", [False, True])
def test_one_sentence_and_two(fitted):
    selector = awake() if fitted else SentenceSelector()
    assert selector.choose(*case([1])) == [(0,)]
    assert selector.choose(*case([2]))[0] in [(0,), (1,), (0, 1)]


def test_a_sum_of_two_sentences_is_found_among_many():
    batch, y, y0, read, words = case([12])
    y = 5 * (batch.sentences[:, 3] + batch.sentences[:, 10])
    assert SentenceSelector().choose(batch, y, y0, read, words) == [(3, 10)]


@pytest.mark.parametrize("fitted", [False, True])
@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 8), st.integers(0, 99))
def test_a_sentence_that_is_said_again_is_picked_once(fitted, said, largest, seed):
    """Copies are found whatever their length, zero included; the first one stands for all of them."""
    given_ = case([len(said)], seed)
    batch = given_[0]
    kinds = torch.randn(4, D, generator=torch.Generator().manual_seed(seed))
    kinds[0] = 0.0
    batch.sentences[0] = kinds[said] * torch.rand(len(said), 1).add(0.5)
    assert repeats(batch)[0].tolist() == [kind in said[:i] for i, kind in enumerate(said)]
    chosen = (awake(seed) if fitted else SentenceSelector()).choose(*given_, max_sentences=largest)[0]
    assert len({said[i] for i in chosen}) == len(chosen)


def test_the_length_of_a_sentences_vector_does_not_make_it_nearer():
    given_ = case([6], 3)
    batch, y = given_[0], given_[1]
    near, signs = sentence_signs(*given_)[..., 0], sentence_signs(*given_)
    batch.sentences[0] *= torch.tensor([0.01, 100.0, 3.0, 1.0, 0.5, 7.0])[:, None]
    torch.testing.assert_close(sentence_signs(*given_)[..., 0], near)
    columns = [0, 1, 2, 3, 5, 6, 15]  # all but what is measured against the mean sentence
    torch.testing.assert_close(sentence_signs(*given_)[..., columns], signs[..., columns])
    batch.sentences[0, 2] = 0.0
    found = sentence_signs(*given_)
    assert found.isfinite().all() and found[0, 2, :5].eq(0).all()
    assert sentence_signs(batch, torch.zeros_like(y), *given_[2:]).isfinite().all()


@pytest.mark.parametrize("wrong", [0, -1, CANDIDATES + 1])
def test_a_number_of_sentences_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=f"max_sentences={wrong} is not between 1 and 8"):
        SentenceSelector().choose(*case([3]), max_sentences=wrong)


@pytest.mark.parametrize(("count", "largest"), [(1, 3), (2, 3), (5, 3), (8, 8)])
def test_candidate_sets_are_all_of_them(count, largest):
    members = candidate_sets(count, largest)
    found = [tuple(row.nonzero().squeeze(-1).tolist()) for row in members]
    assert found == every_set(range(count), min(largest, count))


def test_candidates_are_the_best_in_the_articles_order():
    scores = torch.tensor([[0.1, 5.0, 0.2, 3.0, 0.3, 4.0, 0.4, 2.0, 0.5, 1.0]])
    assert best_sentences(scores).tolist() == [[1, 3, 4, 5, 6, 7, 8, 9]]
    assert best_sentences(scores[:, :3]).tolist() == [[0, 1, 2]]


# -- what the scores are made of ---------------------------------------------------------------------------------


def sentence_signs_by_hand(sentences, doc, lead, y, y0, read, words):
    count = len(sentences)
    around = [y, y0, doc, lead, sentences.mean(0)]
    near = np.array([[cosine(s, v) for v in around] for s in sentences])
    order = sorted(range(count), key=lambda i: -near[i, 0])
    rows = []
    for i, s in enumerate(sentences):
        others = [cosine(s, t) for j, t in enumerate(sentences) if j != i]
        length = math.log(1 + words[i])
        more = [
            near[:, 0].max() - near[i, 0],
            min(order.index(i), 10),
            math.log(read[i] * count + 1e-3),
            math.log(1 + i),
        ]
        more += [1 / (1 + i), i / count, float(i == 0), math.log(count), length, length**2]
        # The sentence itself counts as a similarity of nought.
        more += [max([0.0, *others]), sum(others) / count]
        rows.append([*near[i], *more])
    return np.array(rows)


def set_signs_by_hand(sentences, y, words, chosen):
    inside = sentences[list(chosen)]
    own = np.array([cosine(s, y) for s in inside])
    pairs = [cosine(a, b) for a, b in combinations(inside, 2)]
    length = words[list(chosen)].sum()
    places = [math.log(1 + i) for i in chosen]
    return np.array(
        [
            cosine(inside.sum(0), y),
            own.mean(),
            own.min(),
            len(chosen),
            float(len(chosen) == 1),
            math.log(1 + length),
            length / 50,
            max([0.0, *pairs]),
            places[0],
            places[-1],
            np.mean(places),
            math.log(len(sentences)),
        ]
    )


def plain(given_, row, length):
    """Numpy values of one article of a case."""
    batch, y, y0, read, words = row_of(given_, row, length)
    values = (batch.sentences, batch.doc, batch.lead, y, y0, read, words)
    return [value[0].double().numpy() for value in values]


@pytest.mark.parametrize("lengths", [[1], [2, 5], [14, 3]])
def test_signs_of_sentences_are_the_formulas(lengths):
    given_ = case(lengths)
    found = sentence_signs(*given_)
    for row, length in enumerate(lengths):
        expected = sentence_signs_by_hand(*plain(given_, row, length))
        if length > 1:  # with one sentence there is no other to be like
            np.testing.assert_allclose(found[row, :length], expected, atol=1e-5)
        assert not found[row, length:].any()


def test_signs_of_sets_are_the_formulas():
    given_ = case([5])
    batch, y, _, _, words = given_
    sentences, _, _, y_plain, _, _, words_plain = plain(given_, 0, 5)
    best, members = torch.tensor([[0, 2, 3, 4]]), candidate_sets(4, 3)
    found = set_signs(batch, y, words, best, members)
    for k, places in enumerate(every_set([0, 2, 3, 4], 3)):
        np.testing.assert_allclose(found[0, k], set_signs_by_hand(sentences, y_plain, words_plain, places), atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(length=st.integers(2, 12), largest=st.integers(1, 3), seed=st.integers(0, 99))
def test_fitted_it_is_the_best_scored_of_all_sets(length, largest, seed):
    """Both networks are evaluated sentence by sentence and set by set, in numpy."""
    selector, given_ = awake(seed), case([length], seed)
    w = {name: value.double().numpy() for name, value in selector.state_dict().items()}

    def network(name, signs):
        hidden = w[f"{name}.0.weight"] @ signs + w[f"{name}.0.bias"]
        hidden = np.array([h * 0.5 * (1 + math.erf(h / math.sqrt(2))) for h in hidden])
        return (w[f"{name}.2.weight"] @ hidden + w[f"{name}.2.bias"]).item()

    values = plain(given_, 0, length)
    sentences, y, words = values[0], values[3], values[6]
    signs = (sentence_signs_by_hand(*values) - w["sentence_mean"]) / w["sentence_std"]
    single = [network("sentence", row) for row in signs]
    best = sorted(sorted(range(length), key=lambda i: -single[i])[:CANDIDATES])
    score = {}
    for chosen in every_set(best, largest):
        about = (set_signs_by_hand(sentences, y, words, chosen) - w["set_mean"]) / w["set_std"]
        total = sum(single[i] for i in chosen)
        score[chosen] = network("set", np.concatenate([about, [total, total / len(chosen)]]))
    found = selector.choose(*given_, max_sentences=largest)[0]
    assert score[found] == pytest.approx(max(score.values()), abs=1e-4)


# -- fitting -----------------------------------------------------------------------------------------------------


def test_fitting_raises_rouge_and_is_the_same_every_time():
    """The summaries are the first and the last sentence; states drawn at random cannot point at them."""
    from latentlab_shared.metrics.summarization import RougeScorer

    draw = np.random.default_rng(0)
    texts = [[" ".join(f"w{k}" for k in draw.integers(0, 500, size=6)) for _ in range(5)] for _ in range(12)]
    examples = [Example(str(i), tuple(each), (each[0], each[-1])) for i, each in enumerate(texts)]
    articles = list(embed_examples(examples, TinyEncoder()))
    torch.manual_seed(0)
    width = articles[0].doc.shape[0]
    model = Refiner(ModelConfig(input_dim=width, hidden_dim=8, latent_dim=4, heads=2, steps=1)).eval()
    batch, starts = Batch.collate(articles), torch.randn(12, width) / width**0.5
    with torch.no_grad():
        found = model(batch, start=starts)
    words = word_counts(examples, batch.mask.shape[1])
    scorer = RougeScorer(("rouge1", "rouge2", "rougeLsum"), split=str.splitlines)

    def rouge():
        chosen = model.selector.choose(batch, found.y, found.trajectory[0], found.attention[-1], words)
        total = 0.0
        for example, places in zip(examples, chosen, strict=True):
            scores = scorer.score("\n".join(example.sentences[i] for i in places), "\n".join(example.highlights))
            total += sum(score.f1 for score in scores.values()) / 3
        return total / len(examples)

    fitted = []
    before = rouge()
    caller = torch.get_rng_state()
    for _ in range(2):
        fit_selector(model, articles, examples, starts=starts, epochs=60, batch_size=4, learning_rate=2e-2)
        fitted.append({name: value.clone() for name, value in model.selector.state_dict().items()})
    assert torch.equal(torch.get_rng_state(), caller)
    assert fitted[0]["fitted"]
    assert all(torch.equal(fitted[0][name], fitted[1][name]) for name in fitted[0])
    assert before < 0.7 and rouge() > 0.9
    signs = sentence_signs(batch, found.y, found.trajectory[0], found.attention[-1], words)
    with torch.no_grad():
        scores = model.selector.score_sentences(signs, batch.mask)
    assert (scores[:, [0, 4]].amin(1) > scores[:, 1:4].amax(1)).float().mean() > 0.9


def test_words_are_counted_and_padded():
    examples = generate(3)
    counts = word_counts(examples, 40)
    assert counts.shape == (3, 40)
    for row, example in enumerate(examples):
        assert counts[row, : len(example.sentences)].tolist() == [len(s.split()) for s in example.sentences]
        assert not counts[row, len(example.sentences) :].any()
