"""``python run.py app=alignment``: the entry of every run; its configuration is in ``conf/``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

from refrag.framework.run import main  # noqa: E402  (after the path)

if __name__ == "__main__":
    main()
