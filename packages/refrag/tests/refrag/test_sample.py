"""The built-in facts, the tiny models, and what questions become for training."""

import itertools

import pytest
import torch
from refrag_models import slots_of

from refrag.inference.generator import RefragGenerator
from refrag.model.gate import Budget, Gate
from refrag.sample.facts import KEYS, generate
from refrag.sample.tiny import assemble, make_tiny
from refrag.training.objectives import ContinuationObjective
from refrag.training.questions import QuestionBatches, expansion_gains, prepare, train_gate

EXAMPLES = generate(12, seed=0)


@pytest.fixture(scope="module")
def tiny():
    texts = [doc.text for example in EXAMPLES for doc in example.docs]
    return make_tiny([*texts, *(e.question for e in EXAMPLES), *(e.answer for e in EXAMPLES)], width=16, layers=1)


def test_facts_come_from_the_seed():
    assert generate(12, seed=0) == EXAMPLES and generate(12, seed=1) != EXAMPLES
    assert generate(3, seed=0) == EXAMPLES[:3]


@pytest.mark.parametrize("example", EXAMPLES)
def test_only_the_cited_document_has_the_answer(example):
    texts = {doc.id: doc.text for doc in example.docs}
    assert len(texts) == 3
    evidence = texts[example.gold][example.start : example.end]
    key, place = next(k for k in KEYS if k in example.question), example.question.split()[-1].rstrip("?")
    assert evidence == f"The {key} of {place} is {example.value}."
    assert example.answer == f"{evidence[:-1]} [{example.gold}]."
    assert [i for i, text in texts.items() if place in text] == [example.gold]


def test_a_prepared_question_is_the_generators_window(tiny):
    """What is trained on is what is answered from, slot for slot."""
    generator = RefragGenerator(*tiny)
    objective = ContinuationObjective(*tiny)
    tail = generator.tokenizer.decoder_ids("\n")
    for example in EXAMPLES[:4]:
        prepared = prepare(example, generator.tokenizer)
        scores = [float(held) for held in prepared.evidence]
        share = sum(prepared.evidence) / len(scores)
        window = generator.window(example.question, example.docs, budget=Budget(fraction=share), scores=scores)
        assert [slot.expanded for slot in window.slots] == list(prepared.evidence)
        with torch.no_grad():
            prompt = slots_of(objective, prepared.passage(prepared.evidence, tail))
        assert torch.allclose(prompt, window.embeddings, atol=1e-5)
        shown = "".join(
            next(d.text for d in example.docs if d.id == s.doc)[s.start : s.end] for s in window.slots if s.expanded
        )
        assert example.value in shown


def test_the_target_is_the_answer_and_an_end(tiny):
    _, tokenizer = tiny
    prepared = prepare(EXAMPLES[0], tokenizer)
    assert prepared.target[-1] == tokenizer.decoder_tokenizer.eos_token_id
    assert tokenizer.decoder_tokenizer.decode(prepared.target[:-1]) == f" {EXAMPLES[0].answer}"


def test_batches_expand_the_evidence_and_some_others(tiny):
    batches = QuestionBatches([[e] for e in EXAMPLES], tiny[1], 32, 0)
    passages = batches.batch(0, 0, 1)
    assert passages == batches.batch(0, 0, 1) != batches.batch(1, 0, 1)
    assert list(itertools.chain(*zip(*(batches.batch(0, r, 2) for r in (0, 1)), strict=True))) == passages
    by_target = {prepare(e, tiny[1]).target: e for e in EXAMPLES}
    for passage in passages:
        text = tiny[1].decoder_tokenizer.decode([t for p in passage.pieces if isinstance(p, tuple) for t in p])
        assert by_target[passage.target].value in text


def test_gains_are_differences_of_losses(tiny):
    model, tokenizer = tiny
    objective, tail = ContinuationObjective(model.eval(), tokenizer), tokenizer.decoder_ids("\n")
    prepared = prepare(EXAMPLES[0], tokenizer)
    gains = expansion_gains(objective, prepared, tail)
    count = len(prepared.evidence)
    assert gains.shape == (count,)
    with torch.no_grad():
        whole = objective.per_passage([prepared.passage([True] * count, tail)])
        without = objective.per_passage([prepared.passage([n != 1 for n in range(count)], tail)])
    assert torch.allclose(gains[1], (without - whole)[0], atol=1e-5)


def test_the_gate_learns_what_is_worth_expanding_and_nothing_else_changes(tiny):
    generator = RefragGenerator(*tiny)
    given = [generator.gate_inputs(example.question, example.docs) for example in EXAMPLES]
    worth = [torch.tensor(prepare(e, generator.tokenizer).evidence).float() for e in EXAMPLES]
    torch.manual_seed(0)
    gate = Gate(generator.model.encoder_dim, 8, asks=True)
    losses = train_gate(gate, given, worth, steps=200)
    assert losses[-1] < 0.6 * losses[0]  # its start, by signs alone, is good already
    assert not any(parameter.requires_grad for parameter in gate.parameters())
    with torch.no_grad():
        right = [gate(*inputs).topk(int(w.sum())).indices for inputs, w in zip(given, worth, strict=True)]
    hits = sum(float(w[chosen].sum()) for chosen, w in zip(right, worth, strict=True))
    assert hits / sum(float(w.sum()) for w in worth) > 0.7  # by chance: a quarter


def test_a_twin_begins_with_what_the_decoder_knows(tmp_path):
    """A row's vector leans to the mean of its tokens' embeddings, and is about as long as one."""
    texts = [doc.text for example in EXAMPLES for doc in example.docs]
    model, tokenizer = make_tiny(texts, width=64, layers=1)
    model.decoder.save_pretrained(tmp_path)
    tokenizer.decoder_tokenizer.save_pretrained(tmp_path)
    twin, both = assemble("twin", str(tmp_path), texts, compression=4)
    assert twin.encoder_dim == twin.decoder_dim == 64 and both.encoder_tokenizer is both.decoder_tokenizer
    chunks = both.chunks(texts[0])
    assert all(chunk.encoder_ids == chunk.decoder_ids for chunk in chunks) and len(chunks[0].encoder_ids) == 4
    with torch.no_grad():
        rows, masks = both.pack([both.row(chunk.encoder_ids) for chunk in chunks])
        vectors = twin.project(twin.encode_rows(rows, masks))
        means = torch.stack([twin.embed(chunk.decoder_ids).mean(0) for chunk in chunks])
    like = torch.nn.functional.cosine_similarity(vectors[:, None], means[None], dim=-1)
    own = float(like.diagonal().mean())
    assert own > 0.5 and own > 0.2 + float((like.sum() - like.diagonal().sum()) / (like.numel() - len(like)))
    assert 0.3 < float(vectors.norm(dim=1).mean() / means.norm(dim=1).mean()) < 3
