"""Small tokenizers of every family, trained here on a few sentences."""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

SENTENCES = [
    "The river rises in the northern hills and flows past three old mills before it meets the sea.",
    "Refragmentation of a frozen aggregate happens in fragments; the refraction index is 1.4142.",
    "In 1942 the library held 3,517 volumes, of which 288 were lost, and 19 came back.",
    "Who wrote the letter? Nobody knows: it was signed 'A. N. Onymous' and dated 12/07/1887.",
    "A naïve façade, a déjà vu, an Ångström and a straße walk into a café.",
    "Don't you think it isn't theirs? They'd've said so; we're sure they can't.",
    "def align(text): return [anchor for anchor in text.split() if anchor]",
    "日本語の文章と한국어 문장 and some русский текст, mixed with العربية.",
    "Alignment of two tokenizers works on the source text, never on what is decoded.",
]


@cache
def tokenizer(family: str) -> Any:
    """A small tokenizer of a family, in transformers' class."""
    return _MAKERS[family]()


def _fast(inner: Tokenizer, **special: str) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def _wordpiece() -> Any:
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner.train_from_iterator(
        SENTENCES, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    inner.enable_truncation(8)  # as all-MiniLM-L6-v2's file does; no concern of ours
    inner.enable_padding(length=8)
    return _fast(inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")


def _byte_level(size: int, trim: bool) -> Any:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>"] if trim else ["<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    if trim:
        inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
        return _fast(inner, pad_token="<pad>", cls_token="<s>", sep_token="</s>", bos_token="<s>", eos_token="</s>")
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    return _fast(inner, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def _sentencepiece_bpe() -> Any:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>"]
    inner.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    model = json.loads(inner.to_str())["model"]
    vocab = dict(model["vocab"])
    for byte in range(256):
        vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
    merges = [tuple(pair) for pair in model["merges"]]
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(special)
    return _fast(made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _unigram() -> Any:
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip(left=False, right=True)]
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    inner.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    inner.train_from_iterator(
        SENTENCES,
        trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    return _fast(inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _slow_wordpiece() -> Any:
    vocab = tokenizer("wordpiece").get_vocab()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.txt"
        file.write_text("\n".join(sorted(vocab, key=vocab.__getitem__)) + "\n", encoding="utf-8")
        return BertTokenizerLegacy(str(file))


_MAKERS = {
    "wordpiece": _wordpiece,
    "gpt2": lambda: _byte_level(400, trim=False),
    "roberta": lambda: _byte_level(330, trim=True),
    "llama": _sentencepiece_bpe,
    "unigram": _unigram,
    "slow wordpiece": _slow_wordpiece,
    "slow bytes": lambda: ByT5Tokenizer(extra_ids=0),
}
FAMILIES = list(_MAKERS)
