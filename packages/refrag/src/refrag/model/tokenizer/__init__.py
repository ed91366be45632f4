"""Two tokenizers over one text: where tokens stand in it, and where both sides cut at the same place."""
