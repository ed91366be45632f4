"""The tokenizers' alignment, the document parser and the model."""
