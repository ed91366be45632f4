"""Baselines of the gate, against slow ones."""

import pytest
import torch
from refrag_models import make_model, make_tokenizer
from refrag_tokenizers import SENTENCES

from refrag.eval.selection import cosine_scores, perplexity_scores, random_scores
from refrag.inference.generator import RefragGenerator
from refrag.model.documents import Doc

DOCS = [Doc("1", SENTENCES[0]), Doc("2", ""), Doc("3", "a"), Doc("4", SENTENCES[2])]


def test_random_scores_come_from_the_seed():
    assert random_scores(5, 1) == random_scores(5, 1) != random_scores(5, 2)


def test_cosine_is_that_of_the_vectors():
    generator = RefragGenerator(make_model(), make_tokenizer())
    vectors, _, query = generator.gate_inputs("Where?", DOCS)
    found = cosine_scores(generator, "Where?", DOCS)
    for score, vector in zip(found, vectors, strict=True):
        assert score == pytest.approx(float(vector @ query / vector.norm() / query.norm()), abs=1e-5)
    blind = RefragGenerator(make_model(conditioning="none"), make_tokenizer())
    with pytest.raises(ValueError, match="does not read the question"):
        cosine_scores(blind, "Where?", DOCS)


def test_perplexity_is_that_of_each_token_after_those_before():
    generator = RefragGenerator(make_model(), make_tokenizer())
    found = iter(perplexity_scores(generator, DOCS))
    for doc in DOCS:
        before: list[int] = []
        for chunk in generator.tokenizer.chunks(doc.text):
            nats = []
            for token in chunk.decoder_ids:
                if before:
                    logits = generator.model.logits([generator.model.embed(before)])[0]
                    nats.append(float(-logits.detach().log_softmax(-1)[token]))
                before.append(token)
            assert next(found) == pytest.approx(sum(nats) / len(nats) if nats else 0.0, abs=1e-3)
    assert next(found, None) is None
    assert torch.is_grad_enabled()
