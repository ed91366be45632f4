"""``python webapp/server.py --model runs/refrag/questions``: the API and its page; the same as ``refrag serve``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from latentlab_shared.cli import run  # noqa: E402
from refrag.cli import app  # noqa: E402  (after the path)

if __name__ == "__main__":
    run(app, "refrag", ["serve", *sys.argv[1:]])
