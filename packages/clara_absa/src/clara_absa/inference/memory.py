"""Compressed texts as files and in a cache: what is read once and asked many times."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from latentlab_shared.errors import UserError
from latentlab_shared.files import atomic_path


@dataclass(frozen=True)
class Memory:
    """What a model kept of a text.

    Attributes:
        vectors: (k, d), float32.
        text: the text, if it was kept.
        tokens: tokens of the text as the model read it.
        model: identity of the model; another one cannot read it.
        cut: whether the text was longer than the model reads: the rest of it is not in the memory.
    """

    vectors: Tensor
    text: str
    tokens: int
    model: str
    cut: bool = False

    @property
    def ratio(self) -> float:
        """Text tokens per memory vector."""
        return self.tokens / len(self.vectors)

    def save(self, path: Path) -> None:
        """Write it as safetensors, atomically."""
        from safetensors.torch import save_file

        told = json.dumps({"text": self.text, "tokens": self.tokens, "model": self.model, "cut": self.cut})
        with atomic_path(Path(path)) as temporary:
            save_file({"memory": self.vectors.detach().cpu().contiguous()}, temporary, metadata={"clara": told})

    @classmethod
    def load(cls, path: Path) -> Memory:
        """Read what ``save`` wrote.

        Raises:
            UserError: if there is no such file, or it is no memory.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                told = json.loads((file.metadata() or {})["clara"])
                cut = bool(told.get("cut", False))
                return cls(file.get_tensor("memory"), told["text"], int(told["tokens"]), told["model"], cut)
        except (FileNotFoundError, IsADirectoryError):
            raise UserError("there is no such file", path, "Write one with `clara-absa compress`") from None
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UserError("this is no memory of clara-absa", path, "Write one with `clara-absa compress`") from error
