"""The light compressor: texts of a row stay apart, and a prefix of a nested memory is what it would be alone."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
from clara_helpers import EXAMPLES, TOKENIZER

from clara_absa.configs import MemoryConfig
from clara_absa.configs.schema import POLARITIES
from clara_absa.data_utils.batches import Batcher
from clara_absa.data_utils.packing import Tree, pack
from clara_absa.data_utils.prompts import Prompter
from clara_absa.model import FastClaraModel
from clara_absa.model.light import LightReader
from clara_absa.sample.backbone import backbone_on_encoder, make_backbone, match_words
from latentlab_shared.errors import UserError


def encoder_of() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.3,
    )
    return BertModel(config, add_pooling_layer=False).eval()


@pytest.mark.parametrize("pooled", [False, True])
@torch.no_grad()
def test_packed_texts_have_the_memory_of_each_alone(pooled):
    encoder = encoder_of()
    reader = LightReader(encoder, tokens=4, depth=2, width=16, pooled=pooled).eval()
    texts = [tuple(TOKENIZER(example.text)["input_ids"]) for example in EXAMPLES[:5]] + [(7,)]
    packed = pack([Tree(text) for text in texts], 64)
    assert len(packed.ids) < len(texts)
    together, words = reader(packed)
    for number, text in enumerate(texts):
        alone, its_words = reader(pack([Tree(text)]))
        rows = slice(4 * number, 4 * number + 4)
        assert torch.allclose(together[rows], alone, atol=1e-5)
        # The oracle of the encoder's part is the encoder on one text, by itself.
        if pooled:
            assert torch.allclose(words[rows], its_words, atol=1e-5)
            table = encoder.get_input_embeddings()(torch.tensor(text))
            parts = [(j * len(text) // 4, (j + 1) * len(text) // 4) for j in range(4)]
            means = [table[min(a, len(text) - 1) : max(b, min(a, len(text) - 1) + 1)].mean(0) for a, b in parts]
            assert torch.allclose(its_words, -torch.stack(means), atol=1e-5)  # as the skip begins
    states = encoder(input_ids=torch.tensor([texts[0]])).last_hidden_state
    packed_states = encoder(
        input_ids=packed.ids,
        attention_mask=(packed.tree[:, :, None] == packed.tree[:, None, :])[:, None],
        position_ids=packed.positions,
    ).last_hidden_state
    assert torch.allclose(packed_states[packed.tree == 0], states[0], atol=1e-5)


@torch.no_grad()
def test_the_first_vectors_are_a_memory_of_their_own():
    encoder = encoder_of()
    reader = LightReader(encoder, tokens=4, depth=2, width=16, pooled=True, nested=True).eval()
    packed = pack([Tree(tuple(TOKENIZER(EXAMPLES[0].text)["input_ids"]))])
    whole, _ = reader(packed)
    reader.queries = torch.nn.Parameter(reader.queries[:2].clone())
    short, _ = reader(packed)
    assert torch.allclose(whole[:2], short, atol=1e-6)


def test_a_text_behind_an_encoder_is_cut_between_its_marks(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "soup", "is", "##y"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    batcher = Batcher(Prompter(TOKENIZER), MemoryConfig(reader="encoder", max_text_tokens=8), 128, tokenizer)
    for text, kept in (("soup is " * 4, 32), ("soup is soupy", 13), ("soup is " * 3 + "soup soupy", 33)):
        assert batcher.kept(text) == kept, text
        assert len(batcher.read(text)) <= 10
        assert batcher.read(text[:kept]) == batcher.read(text)


def test_one_gradient_reaches_encoder_and_decoder_and_words_stay():
    encoder = encoder_of()
    memory = MemoryConfig(tokens=4, reader="encoder", start="pooled")
    backbone = backbone_on_encoder(TOKENIZER, encoder, layers=1)
    reader = LightReader(encoder, 4, 1, 16, pooled=True)
    model = FastClaraModel(backbone, memory, reader)
    batcher = Batcher(Prompter(TOKENIZER), memory, 128, TOKENIZER)
    items = [batcher.item(example) for example in EXAMPLES[:3]]
    batch = batcher.training(items, [["reason"]] * 3)
    model(batch.texts, batch.questions).tasks.sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert gradients["reader.encoder.encoder.layer.0.attention.self.query.weight"].abs().max() > 0
    assert gradients["backbone.model.layers.0.self_attn.qkv_proj.weight"].abs().max() > 0
    queries, keys, _ = backbone.model.layers[0].self_attn.qkv_proj.weight.chunk(3)
    assert torch.equal(queries, -keys)  # a word attends to the vectors that hold it, and these hold it negated
    table = backbone.get_input_embeddings().weight
    assert table.grad is None and torch.equal(table, encoder.get_input_embeddings().weight)


@torch.no_grad()
def test_marks_of_a_nested_memory_are_those_of_the_shortest_stretch_that_is_shown():
    """Stretches of four: the whole, the second half, the second quarter, the last quarter."""
    memory = MemoryConfig(tokens=4, sizes=(2, 4), start="matched", window=2)
    model = FastClaraModel(backbone_on_encoder(TOKENIZER, encoder_of(), layers=1), memory).eval()
    batcher = Batcher(Prompter(TOKENIZER), memory, 64)
    texts = batcher.texts([tuple(range(20, 28)), tuple(range(20, 36))])
    text, token = torch.tensor([0] * 8 + [1]), torch.tensor([*range(8), 15])
    assert model._holders(texts, text, token).tolist() == [0, 0, 2, 2, 1, 1, 3, 3, 7]
    assert model._holders(texts, text, token, 2).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 5]


def llama(heads: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": heads}
    return LlamaForCausalLM(LlamaConfig(vocab_size=60, hidden_size=32, intermediate_size=32, **shape))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@torch.no_grad()
def test_matched_words_find_each_other(fused, sign):
    """Under the first layer's queries and keys a word scores highest with itself, as a memory holds it."""
    backbone = make_backbone(TOKENIZER, 32, 1, 4) if fused else llama(4)
    match_words(backbone, seed=3, sign=sign)
    attention = backbone.model.layers[0].self_attn
    split = (attention.q_proj.weight, attention.k_proj.weight) if not fused else attention.qkv_proj.weight.chunk(3)[:2]
    words = torch.nn.functional.normalize(torch.randn(20, 32))
    scores = (words @ split[0].T) @ (sign * words @ split[1].T).T
    assert scores.argmax(1).tolist() == list(range(20))


def test_a_backbone_of_fewer_keys_cannot_match_words():
    with pytest.raises(UserError, match="fewer keys than queries"):
        match_words(llama(2))


@pytest.mark.parametrize("by", ["encoder", "decoder"])
@torch.no_grad()
def test_marks_are_read_off_the_vectors_that_hold_the_aspects(by):
    """Against the plain way: for each aspect, its stretch by hand, and that vector's cross-entropy."""
    memory = MemoryConfig(tokens=4, reader=by, start="pooled")
    backbone = backbone_on_encoder(TOKENIZER, encoder_of(), layers=1)
    reader = LightReader(encoder_of(), 4, 1, 16, pooled=True).eval() if by == "encoder" else None
    model = FastClaraModel(backbone, memory, reader).eval()
    batcher = Batcher(Prompter(TOKENIZER), memory, 64, TOKENIZER)
    examples = [replace(EXAMPLES[0], text=f"  {EXAMPLES[0].text}", aspects=_moved(EXAMPLES[0], 2)), *EXAMPLES[1:4]]
    items = [batcher.item(example) for example in examples]
    assert len(batcher.training(items, [["reason"]] * 4).texts.ids) > 1
    vectors, _ = model.compress(batcher.texts([item.text for item in items]))
    vocabulary = model.backbone.get_output_embeddings().weight
    words = vocabulary[torch.tensor([answer[0] for answer in batcher.prompter.verbalizers])]
    expected = 0.0
    for number, (example, item) in enumerate(zip(examples, items, strict=True)):
        offsets = TOKENIZER(example.text, return_offsets_mapping=True)["offset_mapping"]
        for aspect in example.aspects:
            middle = (aspect.start + aspect.end - 1) // 2
            [token] = [n for n, (low, high) in enumerate(offsets) if low <= middle < high]
            [slot] = [j for j in range(4) if j * len(item.text) // 4 <= token < (j + 1) * len(item.text) // 4]
            vector = vectors[4 * number + slot]
            scores = words @ (vector / vector.square().mean().sqrt())
            expected -= float(scores.log_softmax(-1)[POLARITIES.index(aspect.polarity)])
    batch = batcher.training(items, [["reason"]] * 4)
    verbalizers = torch.tensor([answer[0] for answer in batcher.prompter.verbalizers])
    sums = model(batch.texts, batch.questions, verbalizers=verbalizers, marks=batch.marks)
    assert float(sums.marked) == pytest.approx(expected, rel=1e-4)
    assert float(model(batch.texts, batch.questions).marked) == 0.0


def _moved(example, by):
    return tuple(replace(aspect, start=aspect.start + by, end=aspect.end + by) for aspect in example.aspects)
