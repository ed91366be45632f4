"""The built-in articles: the same from a seed, varied, learnable, and not solved by their first sentences."""

import re

import numpy as np
import pytest

from latentlab_shared.encoders import LsaEncoder, TinyEncoder
from latentlab_shared.text import split_sentences, words
from rsr_net.data import embed_examples
from rsr_net.sample import demo, generate, sample_split


def recall(summary: str, text: str) -> float:
    """Share of the summary's words that the text has."""
    known = set(words(text, lower=True))
    asked = words(summary, lower=True)
    return sum(word in known for word in asked) / len(asked)


def test_the_seed_decides_and_a_longer_list_begins_with_the_shorter():
    assert generate(5, seed=1) == generate(9, seed=1)[:5]
    assert generate(5, seed=1) != generate(5, seed=2)


def test_parts_share_no_article():
    parts = {part: {e.article for e in sample_split(part)} for part in ("train", "valid", "test")}
    assert [len(p) for p in parts.values()] == [400, 100, 100]
    assert len(set().union(*parts.values())) == 600


def test_every_slot_is_filled_and_the_splitter_sees_the_same_sentences():
    for example in generate(200, seed=4):
        assert not re.search(r"[{}]|=>", example.article + example.summary)
        assert tuple(split_sentences(example.article)) == example.sentences
        assert tuple(split_sentences(example.summary)) == example.highlights
        assert 2 <= len(example.highlights) <= 3 and 8 <= len(example.sentences) <= 20


def test_the_first_three_sentences_are_not_the_news():
    examples = generate(200, seed=5)

    def best(example):
        """The sentences that share most words with each highlight."""
        return " ".join({max(example.sentences, key=lambda s: recall(h, s)) for h in example.highlights})

    lead = np.mean([recall(e.summary, e.lead) for e in examples])
    oracle = np.mean([recall(e.summary, best(e)) for e in examples])
    assert oracle > lead + 0.15


def test_names_are_kept_within_an_article():
    place = re.compile(r"mayor of (\w+)")
    for example in generate(300, seed=6):
        found = place.findall(example.summary)
        assert all(name in example.article for name in found)


@pytest.mark.parametrize("kind", ["tiny", "lsa"])
def test_reading_the_sentences_again_helps(kind):
    """What the package is about, in closed form: ridge, then ridge with a mix of the sentences near its answer."""
    train, test = sample_split("train"), sample_split("test")
    encoder = TinyEncoder()
    if kind == "lsa":
        encoder = LsaEncoder.fit([text for e in train for text in (e.article, e.summary, *e.sentences)], 64)
    fitted, held = (list(embed_examples(part, encoder)) for part in (train, test))

    def ridge(x, y, penalty=1.0):
        mean, center = x.mean(0), y.mean(0)
        weights = np.linalg.solve((x - mean).T @ (x - mean) + penalty * np.eye(x.shape[1]), (x - mean).T @ (y - center))
        return lambda new: (new - mean) @ weights + center

    def mix(articles, guesses):
        scores = [np.exp(20 * (a.sentences @ (g / np.linalg.norm(g)))) for a, g in zip(articles, guesses, strict=True)]
        return np.stack([(s / s.sum()) @ a.sentences for s, a in zip(scores, articles, strict=True)])

    y, truth = (np.stack([a.target for a in part]) for part in (fitted, held))
    x, new = (np.stack([np.r_[a.doc, a.lead] for a in part]) for part in (fitted, held))

    def r2(guess):
        return 1 - ((truth - guess) ** 2).sum() / ((truth - y.mean(0)) ** 2).sum()

    first = ridge(x, y)
    second = ridge(np.c_[x, mix(fitted, first(x))], y)
    guess = second(np.c_[new, mix(held, first(new))])
    identity = r2(np.stack([a.doc for a in held]))
    assert identity < 0 < r2(first(new)) < r2(guess) - 0.02


def test_the_demo_is_one_article_to_read():
    example = demo()
    assert tuple(split_sentences(example.article)) == example.sentences
    assert len(example.sentences) >= 8 and example.highlights
    assert example.article not in {e.article for e in generate(600)}
