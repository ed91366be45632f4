"""Baselines of the gate, against slow ones."""

import copy
import math

import pytest
import torch
from refrag_models import make_model, make_tokenizer
from refrag_tokenizers import SENTENCES

from latentlab_shared.errors import UserError
from refrag.eval.perplexity import Perplexity, contexts, measure_perplexity, passages
from refrag.eval.reconstruction import measure_reconstruction
from refrag.eval.selection import cosine_scores, perplexity_scores, random_scores
from refrag.inference.generator import RefragGenerator
from refrag.model.documents import Doc
from refrag.training.objectives import ContinuationObjective, Passage

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


# -- perplexity --------------------------------------------------------------------------------------------------------


def plain(model, ids, given):
    """Summed nats of the tokens behind the first ``given``, one forward of the bare decoder."""
    with torch.no_grad():
        logits = model.decoder(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return float(-logits[given - 1 : -1].gather(1, torch.tensor(ids[given:])[:, None]).sum())


def test_perplexities_are_those_of_the_bare_decoder():
    model, tokenizer = make_model(), make_tokenizer()
    texts = [" ".join(SENTENCES), " ".join(reversed(SENTENCES))]
    found = measure_perplexity(ContinuationObjective(model, tokenizer), texts, context=6, target=2, batch_size=3)
    sums, tokens = {"none": 0.0, "last": 0.0, "full": 0.0}, 0
    for chunks, target in contexts([tokenizer.chunks(text) for text in texts], 6, 2):
        before, target = [t for chunk in chunks for t in chunk.decoder_ids], list(target)
        sums["none"] += plain(model, target, 1)
        sums["last"] += plain(model, before[-6:] + target, 7)
        sums["full"] += plain(model, before + target, len(before) + 1)
        tokens += len(target) - 1
    assert found.tokens == tokens > 50
    for way, total in sums.items():
        assert getattr(found, way) == pytest.approx(total / tokens, abs=1e-3)
    assert found.compressed != found.full


def test_a_reference_counts_where_it_is_better():
    """What reads tokens worse than the reference is taken from the reference; vectors never are."""
    tokenizer, texts = make_tokenizer(), [" ".join(SENTENCES)]
    sizes = {"context": 6, "target": 2}
    model = copy.deepcopy(make_model())
    own = measure_perplexity(ContinuationObjective(model, tokenizer), texts, **sizes)
    flat = copy.deepcopy(model.decoder)
    flat.lm_head.weight.data.zero_()  # knows nothing: the logarithm of the vocabulary everywhere
    found = measure_perplexity(ContinuationObjective(model, tokenizer), texts, reference=flat, **sizes)
    least = math.log(flat.config.vocab_size)
    for way in ("none", "last", "full"):
        assert getattr(found, way) == pytest.approx(min(getattr(own, way), least), abs=1e-4)
    assert found.compressed == pytest.approx(own.compressed, abs=1e-5)
    assert found.windows == len(list(contexts([tokenizer.chunks(texts[0])], **sizes)))
    assert model.decoder is not flat and own.spread > 0


def test_reconstruction_is_counted_token_by_token():
    model, tokenizer = make_model(), make_tokenizer()
    objective = ContinuationObjective(model, tokenizer)
    text = " ".join(SENTENCES)
    one, two = measure_reconstruction(objective, [text], lengths=(1, 2), batch_size=3)
    chunks = [chunk for chunk in tokenizer.chunks(text) if chunk.decoder_ids]
    nats, right, tokens = 0.0, 0, 0
    for chunk in chunks:
        (vector,) = objective.vectors([Passage((chunk,), chunk.decoder_ids)])
        slots = torch.cat([vector[None], model.embed(chunk.decoder_ids[:-1])])
        found = model.decoder(inputs_embeds=slots[None]).logits[0].log_softmax(-1)
        wanted = torch.tensor(chunk.decoder_ids)
        nats -= float(found[torch.arange(len(wanted)), wanted].sum().detach())
        right += int((found.argmax(-1) == wanted).sum())
        tokens += len(wanted)
    assert one["tokens"] == tokens and one["nats"] == pytest.approx(nats / tokens, abs=1e-3)
    assert one["right"] == pytest.approx(right / tokens) and one["unrelated"] != one["nats"]
    assert two["chunks"] == 2
    with pytest.raises(UserError, match="no two stretches of 999 chunks"):
        measure_reconstruction(objective, [text], lengths=(999,))


def test_contexts_do_not_overlap():
    tokenizer = make_tokenizer()
    chunks = tokenizer.chunks(" ".join(SENTENCES))
    pairs = list(contexts([chunks], 5, 3))
    assert len(pairs) == len(chunks) // 8
    starts = [pair[0][0].start for pair in pairs]
    assert starts == sorted(set(starts)) == [chunks[n * 8].start for n in range(len(pairs))]
    ways = passages(*pairs[0])
    assert {len(way.target) for way in ways.values()} == {len(pairs[0][1]) - 1}


def test_gap_closed_and_texts_too_short():
    measured = Perplexity(none=4.0, last=3.5, compressed=2.5, full=2.0, tokens=9)
    assert measured.gap_closed() == 0.75 and measured.gap_closed("last") == 0.25 and measured.gap_closed("full") == 1
    with pytest.raises(UserError, match="no text has 9 chunks"):
        measure_perplexity(ContinuationObjective(make_model(), make_tokenizer()), ["short"], context=8, target=1)
