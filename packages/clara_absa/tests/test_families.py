"""Other backbones and real tokenizers: nothing is particular to the small Phi-3 that is made here."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from clara_helpers import EXAMPLES, TOKENIZER

from clara_absa.configs import POLARITIES, LoraSettings, MemoryConfig, Task
from clara_absa.data_utils.batches import Batcher
from clara_absa.data_utils.prompts import Prompter, parse_extraction
from clara_absa.model import FastClaraModel
from clara_absa.model.adapters import find_targets
from latentlab_shared.errors import UserError

SIZES = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
SEPARATE = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
FUSED = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}


@pytest.mark.parametrize(("family", "modules"), [("Llama", SEPARATE), ("Qwen2", SEPARATE), ("Phi3", FUSED)])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_a_family_answers_packed_as_one_text_at_a_time(family, modules, attention):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, attn_implementation=attention)
    backbone = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    assert {target.name for target in find_targets(backbone, LoraSettings())} == modules
    memory = MemoryConfig(tokens=4)
    model, batcher = FastClaraModel(backbone, memory).eval(), Batcher(Prompter(TOKENIZER), memory, 128)
    texts = [batcher.read(example.text) for example in EXAMPLES[:4]]
    asked = [[batcher.prompter.ask(a.term) for a in example.aspects] for example in EXAMPLES[:4]]
    kept, _ = model.compress(batcher.texts(texts))
    together = model.answer_scores(batcher.questions(texts, asked), kept)
    alone = []
    for text, branches in zip(texts, asked, strict=True):
        words = backbone.get_input_embeddings()(torch.tensor(text))
        one = backbone.model(inputs_embeds=torch.cat([words, model.memory_tokens])[None]).last_hidden_state[0, -4:]
        for branch in branches:
            for answer in branch.answers:
                ids = backbone.get_input_embeddings()(torch.tensor([*branch.prompt, *answer]))
                logits = backbone(inputs_embeds=torch.cat([one * model.scale, ids])[None]).logits[0].log_softmax(-1)
                start = 4 + len(branch.prompt) - 1
                alone.append(float(sum(logits[start + i, token] for i, token in enumerate(answer))))
    assert together.tolist() == pytest.approx(alone, abs=2e-4)


@pytest.mark.parametrize("name", ["phi-3-mini", "llama2", "gpt2", "roberta-base", "all-minilm-l6-v2"])
def test_real_tokenizers_join_prompt_and_answer_as_they_would_the_whole(name):
    home = os.environ.get("LATENTLAB_DATA")
    if not home or not (Path(home) / "tokenizers").is_dir():
        pytest.skip("LATENTLAB_DATA names no folder with tokenizers")
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    folder = Path(home) / "tokenizers" / name
    end = {"phi-3-mini": "<|endoftext|>", "gpt2": "<|endoftext|>", "all-minilm-l6-v2": "[SEP]"}.get(name, "</s>")
    if (folder / "tokenizer.json").is_file():
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token=end)
        tokenizer.backend_tokenizer.no_padding()
    else:
        raw = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw._tokenizer, eos_token=end)
    prompter = Prompter(tokenizer)
    assert prompter.single  # one token for each polarity, so one pass scores all three
    prompt = "Sentiment of food?"
    for polarity, ids in zip(POLARITIES, prompter.verbalizers, strict=True):
        head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert tokenizer(f"{prompt} {polarity}", add_special_tokens=False)["input_ids"] == [*head, *ids]
    branch = prompter.branches(EXAMPLES[0])[Task.EXTRACTION][0]
    said = tokenizer.decode(list(branch.answers[0][:-1]))
    listed = [(a.term, a.polarity) for a in EXAMPLES[0].aspects]
    assert parse_extraction(said.replace(" :", ":")) == listed


def test_lists_of_aspects_are_read_back_whatever_else_was_written():
    assert parse_extraction("wine list: positive, a: b, food:negative,, x") == [
        ("wine list", "positive"),
        ("food", "negative"),
    ]
    assert parse_extraction("") == []


def test_a_tokenizer_that_cannot_tell_polarities_apart_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "food": 2}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    blind = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>")
    with pytest.raises(UserError, match="cannot tell the polarities apart"):
        Prompter(blind)
    with pytest.raises(UserError, match="no end-of-text"):
        Prompter(PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>"))
