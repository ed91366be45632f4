"""The network: one object whose layers serve training and inference alike."""

from __future__ import annotations

from typing import Any, TypeAlias

# TensorFlow and Keras carry no types; what is a tensor is said by name, its shape in comments.
Tensor: TypeAlias = Any
