"""The built-in articles and the tiny backbones."""
