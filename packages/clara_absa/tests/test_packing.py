"""Packed rows against one text at a time: the mask is the whole difference between fast and wrong."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from clara_helpers import EXAMPLES, tiny

from clara_absa.configs import MemoryConfig, Task
from clara_absa.data_utils.packing import TASKS, Branch, Tree, pack, place
from clara_absa.model import FastClaraModel

ids = st.lists(st.integers(1, 300), min_size=1, max_size=6).map(tuple)
branches = st.builds(Branch, ids, st.lists(ids, min_size=1, max_size=3).map(tuple), st.sampled_from(TASKS))
trees = st.lists(st.builds(Tree, ids, st.lists(branches, max_size=3).map(tuple)), min_size=1, max_size=5)
MODEL, _ = tiny()


def oracle(model: FastClaraModel, trunk: torch.Tensor, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    """Log-probability of an answer: the library's own causal model on one sequence, nothing packed.

    Args:
        model: for its backbone.
        trunk: input vectors of what is read, (T, d).
        prompt: ids.
        answer: ids.
    """
    causal = model._causal
    ids = torch.tensor([*prompt, *answer])
    vectors = torch.cat([trunk, causal.get_input_embeddings()(ids)])[None]
    logits = causal(inputs_embeds=vectors).logits[0].log_softmax(-1)
    start = len(trunk) + len(prompt) - 1
    return float(sum(logits[start + i, token] for i, token in enumerate(answer)))


NESTED = [(0, 1), (1, 2), (1, 4), (3, 4)]  # low and denominator of dyadic stretches: [0, 1), [1/2, 1), [1/4, 1/2) …


@torch.no_grad()
def one_memory(model: FastClaraModel, text: tuple[int, ...], k: int) -> torch.Tensor:
    """Memory (k, d) of one text: the library's causal model on the text and k memory tokens, one after the other."""
    causal, n, memory = model._causal, len(text), model.memory
    words = causal.get_input_embeddings()(torch.tensor(text))
    tokens, spelled, places = model.memory_tokens[:k].clone(), torch.zeros(k, words.shape[1]), []
    for j in range(k):
        part, parts = NESTED[j] if memory.sizes else (j, memory.tokens)
        low = min(part * n // parts, n - 1)
        places.append((low, max((part + 1) * n // parts, low + 1)))
        spelled[j] = words[slice(*places[-1])].mean(0)
    if memory.start != "tokens":
        tokens = tokens + spelled
    more = {}
    if memory.window is not None:
        mask = torch.eye(n + k, dtype=torch.bool)
        for i in range(n + k):
            low, high = (i, i + 1) if i < n else places[i - n]
            for j in range(n):
                mask[i, j] |= low - memory.window <= j < high + memory.window and (j <= i or memory.attention == "both")
        middle = [(low + high - 1) // 2 for low, high in places]
        more = {"attention_mask": mask[None, None], "position_ids": torch.tensor([[*range(n), *middle]])}
    vectors = torch.cat([words, tokens])[None]
    found = causal.model(inputs_embeds=vectors, use_cache=False, **more).last_hidden_state[0, -k:] * model.scale
    return found - spelled if memory.start == "matched" else found


@settings(max_examples=25, deadline=None)
@given(trees, st.integers(8, 60))
@torch.no_grad()
def test_packed_answers_equal_one_sequence_at_a_time(made, row):
    packed = pack(made, row)
    found = MODEL.answer_scores(packed, None)
    table = MODEL._causal.get_input_embeddings()
    expected = [
        oracle(MODEL, table(torch.tensor(tree.trunk)), branch.prompt, answer)
        for tree in made
        for branch in tree.branches
        for answer in branch.answers
    ]
    assert found.tolist() == pytest.approx(expected, abs=2e-4)
    assert packed.tasks.tolist() == [TASKS.index(b.task) for t in made for b in t.branches for _ in b.answers]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 40))
def test_each_item_has_one_place_and_rows_are_no_longer_than_asked(sizes, row):
    rows = place(sizes, row)
    assert sorted(i for r in rows for i in r) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in r) <= max(row, max(sizes[i] for i in r)) for r in rows)


@torch.no_grad()
@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"start": "pooled"},
        {"start": "pooled", "sizes": (2, 4)},
        {"start": "matched", "window": 2, "attention": "both"},
        {"start": "matched", "window": 1, "sizes": (2, 4)},
    ],
)
def test_memory_equals_the_library_on_one_text_and_a_prefix_is_a_shorter_memory(k, more):
    model, batcher = tiny(MemoryConfig(tokens=4, **more))
    texts = [batcher.read(example.text) for example in EXAMPLES[:4]] + [batcher.read("a")]
    packed = batcher.texts(texts)
    assert packed is not None and len(packed.ids) < 5  # several texts share a row
    memory, means = model.compress(packed)
    memory = memory.reshape(5, 4, -1)
    for text, found, mean in zip(texts, memory, means, strict=True):
        assert torch.allclose(found[:k], one_memory(model, text, k), atol=1e-5)
        if model.memory.window is None:
            alone = model._causal.model(input_ids=torch.tensor([text])).last_hidden_state[0]
            assert torch.allclose(mean, alone.mean(0), atol=1e-5)


@torch.no_grad()
def test_answers_from_memory_equal_one_sequence_of_memory_and_prompt():
    model, batcher = tiny(MemoryConfig(tokens=4))
    texts = [batcher.read(example.text) for example in EXAMPLES[:4]]
    asked = [[batcher.prompter.ask(aspect.term) for aspect in example.aspects] for example in EXAMPLES[:4]]
    memory, _ = model.compress(batcher.texts(texts))
    for size in (None, 2):
        found = model.answer_scores(batcher.questions(texts, asked, size), memory)
        expected = [
            oracle(model, memory.reshape(4, 4, -1)[i, : size or 4], branch.prompt, answer)
            for i, branches in enumerate(asked)
            for branch in branches
            for answer in branch.answers
        ]
        assert found.tolist() == pytest.approx(expected, abs=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["causal", "both"])
def test_sentences_of_a_row_cannot_see_each_other(attention):
    model, batcher = tiny(MemoryConfig(tokens=4, attention=attention))
    first, second, other = (batcher.read(example.text) for example in EXAMPLES[:3])
    pair, changed = (batcher.texts([first, text]) for text in (second, other))
    assert len(pair.ids) == 1
    a, b = model.compress(pair)[0][:4], model.compress(changed)[0][:4]
    assert torch.allclose(a, b, atol=1e-5)
    # The same test sees a leak where there is one: without marks, the second sentence reads the first.
    leaky = dataclasses.replace(pair, tree=torch.zeros_like(pair.tree), positions=pair.positions)
    inputs = model.memory_tokens[-1 - pair.ids.flatten()[pair.slots]]
    assert not torch.allclose(model.hidden(leaky, inputs), model.hidden(pair, inputs))


@torch.no_grad()
def test_a_window_of_one_layer_ends_where_it_says_and_questions_see_everything():
    model, batcher = tiny(MemoryConfig(tokens=2, start="matched", window=2, attention="both"), layers=1)
    text = tuple(range(20, 40))
    changed = (*text[:12], 99, *text[13:])  # token 12 is in the second half, 3 places from the end of the first
    a, b = (model.compress(batcher.texts([t]))[0] for t in (text, changed))
    assert torch.equal(a[0], b[0]) and not torch.allclose(a[1], b[1])
    nearer = (*text[:11], 99, *text[12:])
    assert not torch.allclose(a[0], model.compress(batcher.texts([nearer]))[0][0])
    reader, batcher = tiny(MemoryConfig(reader="none", window=2, attention="both"), layers=1)
    ask = [[batcher.prompter.ask("food")]]
    scores = [reader.answer_scores(batcher.questions([t], ask), None) for t in (text, (99, *text[1:]))]
    assert not torch.allclose(*scores)
    states = [reader.hidden(batcher.questions([t], [[]]))[0, 19] for t in (text, (*text[:16], 99, *text[17:]))]
    assert torch.equal(*states)


def test_text_sees_later_text_both_ways_but_never_memory():
    packed = pack([Tree((5, 6, -1, -2)), Tree((7, -1, -2))], 16)
    seen = packed.visible(both_ways=True)[0, 0]
    assert seen[0].tolist() == [True, True, False, False, False, False, False]
    assert seen[2].tolist() == [True, True, True, False, False, False, False]
    assert seen[4].tolist() == [False] * 4 + [True, False, False]
    assert packed.visible()[0, 0, 0].tolist() == [True] + [False] * 6


def test_an_answer_sees_its_question_and_no_other_answer():
    packed = pack([Tree((-1,), (Branch((8, 9), ((1, 2), (3, 4))), Branch((7,), ((5, 6),))))])
    # slot 8 9 | 1 | 3 | 7 | 5
    assert packed.ids.tolist() == [[-1, 8, 9, 1, 3, 7, 5]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 3, 1, 2]]
    seen = packed.visible()[0, 0]
    assert seen[4].tolist() == [True, True, True, False, True, False, False]
    assert seen[6].tolist() == [True, False, False, False, False, True, True]
    assert packed.sources.tolist() == [2, 3, 2, 4, 5, 6] and packed.targets.tolist() == [1, 2, 3, 4, 5, 6]


def test_every_task_is_counted_once():
    _, batcher = tiny()
    items = [batcher.item(example) for example in EXAMPLES[:3]]
    batch = batcher.training(items, [list(Task)] * 3)
    from clara_absa.data_utils.batches import task_tokens

    assert batch.questions.task_tokens().tolist() == task_tokens(items, [list(Task)] * 3).tolist()
