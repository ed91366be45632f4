"""Text to ids: readers, splits, pseudo-summaries, vocabulary, batches."""

from seq2seq_keras.data.labels import calculate_text_f1, create_pseudo_summary
from seq2seq_keras.data.readers import Account, Columns, read_examples
from seq2seq_keras.data.splits import read_parts, split_by_date, split_by_hash
from seq2seq_keras.data.types import Batch, Example
from seq2seq_keras.data.vocabulary import Vocabulary

__all__ = [
    "Account",
    "Batch",
    "Columns",
    "Example",
    "Vocabulary",
    "calculate_text_f1",
    "create_pseudo_summary",
    "read_examples",
    "read_parts",
    "split_by_date",
    "split_by_hash",
]
