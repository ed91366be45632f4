"""Pretrained word vectors: GloVe's text files, and the input embeddings of a Hugging Face model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latentlab_shared.errors import UserError
from nrms.data.types import Floats, News
from nrms.data.vocabulary import TokenizerVocabulary, Vocabulary, WordVocabulary


@dataclass(frozen=True)
class Words:
    """A vocabulary and the vectors to start from.

    Attributes:
        vocabulary: V token ids.
        vectors: (V, word_dim) float32, row 0 zeros; None for random ones.
        notes: counts for the run's first lines.
    """

    vocabulary: Vocabulary
    vectors: Floats | None
    notes: dict[str, int]


def load_words(source: str, news: Iterable[News], min_count: int = 1, seed: int = 0) -> Words:
    """The vocabulary of a catalogue.

    Args:
        source: "" for the catalogue's own words, a GloVe text file for those words with its vectors, or "minilm", a
            Hugging Face folder or id for that model's tokens and input embeddings.
        news: the training part's catalogue; all its texts count.
        min_count: rarer words are left out; not for a model's tokens.
        seed: of the rows that a GloVe file does not have.

    Raises:
        UserError: for a file that is no GloVe file.
        NeedsNetwork: for a model that is not here.
    """
    if source and not Path(source).is_file():
        return embeddings_of_model(source)
    texts = (text for n in news for text in (n.title, n.abstract, n.category, n.subcategory))
    vocabulary = WordVocabulary.build(texts, min_count)
    if not source:
        return Words(vocabulary, None, {"words": len(vocabulary)})
    return glove_vectors(Path(source), vocabulary, seed)


def glove_vectors(path: Path, vocabulary: WordVocabulary, seed: int = 0) -> Words:
    """The rows of a GloVe or word2vec text file for some words; words it lacks get random rows of the same spread.

    Raises:
        UserError: as `read_glove`, and if the file has none of the words.
    """
    wanted = set(vocabulary.words)
    found: dict[str, Floats] = {}
    notes: Counter[str] = Counter()
    for word, vector in read_glove(path, notes):
        key = word if word in wanted else word.lower()
        # A capitalised form counts only where the file has no lower-cased one.
        if key in wanted and (key not in found or key == word):
            found[key] = vector
    if not found:
        raise UserError("holds none of the training part's words", path, "Is it of another language?")
    dim = len(next(iter(found.values())))
    known = np.stack(list(found.values()))
    drawn = np.random.default_rng(seed).normal(known.mean(0), known.std(0), (len(vocabulary), dim))
    vectors: Floats = drawn.astype(np.float32)
    vectors[0] = 0
    for index, word in enumerate(vocabulary.words, start=2):
        if word in found:
            vectors[index] = found[word]
    counts = {"words": len(vocabulary), "words with a pretrained vector": len(found)}
    return Words(vocabulary, vectors, {**counts, **notes})


def read_glove(path: Path, notes: Counter[str] | None = None) -> Iterator[tuple[str, Floats]]:
    """Stream the words and vectors of a GloVe or word2vec text file.

    A word2vec header is skipped. Words of several tokens (GloVe 840B's ". . .") are read from the right, so the width
    is what most of the first hundred lines say. Bytes that are not UTF-8, which published files have, are read as
    cp1252 and counted.

    Raises:
        UserError: for a missing or empty file, and a line of another width or with a value that is no finite number,
            by file and line.
    """
    notes = Counter() if notes is None else notes
    width = _glove_width(path)
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            parts = raw.rstrip().split(b" ")
            if number == 1 and len(parts) == 2 and width != 1:
                continue  # word2vec's "rows width"
            if not raw.strip():
                continue
            where = f"{path}:{number}"
            if len(parts) <= width:
                fix = "Fetch the file again; the line may be cut short"
                raise UserError(f"has {len(parts) - 1} numbers instead of {width}", where, fix)
            try:
                vector = np.array(parts[-width:], dtype=np.float32)
            except ValueError:
                raise UserError("holds something else than numbers", where, "Fetch the file again") from None
            if not np.isfinite(vector).all():
                raise UserError("holds a value that is no finite number", where, "Fetch the file again")
            word, extra = b" ".join(parts[:-width]), len(parts) - width - 1
            if extra and all(_is_number(part) for part in parts[1:-width]):
                raise UserError(f"has {len(parts) - 1} numbers instead of {width}", where, "Fetch the file again")
            try:
                text = word.decode("utf-8")
            except UnicodeDecodeError:
                text = word.decode("cp1252", errors="replace")
                notes["words read as cp1252"] += 1
            notes["words of several tokens"] += extra > 0
            yield text, vector


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _glove_width(path: Path) -> int:
    """The commonest number of columns of the first lines, less one for the word."""
    try:
        with path.open("rb") as file:
            lines = [line.rstrip().split(b" ") for _, line in zip(range(100), file, strict=False) if line.strip()]
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", path, "Give a GloVe text file") from None
    if not lines:
        raise UserError("the file is empty", path, "Give a GloVe text file")
    if len(lines) > 1 and len(lines[0]) == 2:
        lines = lines[1:]
    width = Counter(len(line) for line in lines).most_common(1)[0][0] - 1
    if width < 1 or not all(_is_number(value) for value in lines[0][-width:]):
        raise UserError("is no file of word vectors", path, "Its lines are a word and numbers, separated by blanks")
    return width


def embeddings_of_model(name: str) -> Words:
    """The tokens and input embeddings of a Hugging Face model.

    Args:
        name: "minilm" (packaged), a folder or a hub id.

    Raises:
        NeedsNetwork: for a model that is not here.
        UserError: for a model without a fast tokenizer.
    """
    folder = model_folder(name)
    vocabulary = tokenizer_of(folder, special=False)
    from safetensors import safe_open

    path = folder / "model.safetensors"
    if not path.is_file():
        raise UserError("holds no model.safetensors", folder, "Pickled weights are not read")
    with safe_open(path, framework="np") as weights:
        keys = [key for key in weights.keys() if key.endswith(("word_embeddings.weight", "embed_tokens.weight"))]  # noqa: SIM118
        if not keys:
            raise UserError("has no input embeddings of a known name", path, "Use a BERT- or RoBERTa-like model")
        table = weights.get_tensor(min(keys, key=len)).astype(np.float32)
    vectors = np.zeros((len(vocabulary), table.shape[1]), np.float32)
    rows = min(len(table), len(vocabulary) - 1)
    vectors[1 : rows + 1] = table[:rows]
    return Words(vocabulary, vectors, {"words": len(vocabulary), "words with a pretrained vector": rows})


def model_folder(name: str) -> Path:
    """Where a Hugging Face model's files are, fetched if need be."""
    from latentlab_shared.encoders import TransformerEncoder, load_encoder

    encoder = load_encoder(name, device="cpu")
    if not isinstance(encoder, TransformerEncoder):
        raise UserError(f"{name} is not a transformer", "vectors", "Use minilm, or a Hugging Face folder or id")
    return Path(encoder.files.folder)


def tokenizer_of(folder: Path, special: bool) -> TokenizerVocabulary:
    """The tokenizer of a Hugging Face folder."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError("holds no tokenizer.json", folder, "Use a model with a fast tokenizer")
    return TokenizerVocabulary(path.read_text(encoding="utf-8"), special)
