"""From files to examples, from examples to packed batches."""

from clara_absa.data_utils.readers import read_file, write_jsonl
from clara_absa.data_utils.splits import drop_held_out, merge_sentences, read_part

__all__ = ["drop_held_out", "merge_sentences", "read_file", "read_part", "write_jsonl"]
