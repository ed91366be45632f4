"""Write the README tables from results/*.json; with --check, fail when one differs from its file."""

import difflib
import sys
from pathlib import Path

from latentlab_shared.tables import fill

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Fill or check every README; the exit code."""
    check = "--check" in sys.argv[1:]
    stale = 0
    pages = [ROOT / "README.md", ROOT / "shared" / "README.md"]
    for readme in sorted([*pages, *ROOT.glob("packages/*/README.md"), *ROOT.glob("packages/*/webapp/README.md")]):
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
