"""Write the tables of READMEs and site from results/*.json; with --check, fail when one differs from its file."""

import difflib
import sys
from pathlib import Path

from latentlab_shared.tables import fill

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "shared/README.md",
    "packages/*/README.md",
    "packages/*/webapp/README.md",
    "docs/explanation/*.md",
)


def main() -> int:
    """Fill or check every README; the exit code."""
    check = "--check" in sys.argv[1:]
    stale = 0
    for readme in sorted(page for pattern in PAGES for page in ROOT.glob(pattern)):
        before, after = readme.read_text(encoding="utf-8"), fill(readme)
        if before == after:
            continue
        stale += 1
        if check:
            lines = difflib.unified_diff(
                before.splitlines(), after.splitlines(), str(readme.relative_to(ROOT)), lineterm=""
            )
            print("\n".join(lines))
        else:
            readme.write_text(after, encoding="utf-8")
            print(f"wrote {readme.relative_to(ROOT)}")
    if check and stale:
        print("A README table differs from its results file. Run: make tables")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
