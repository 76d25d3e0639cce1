"Fail when the exported package differs from what the notebooks say; leaves the package exported."

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "classification_mlops"


def exported() -> dict[Path, str]:
    "The text of every module of the package."
    return {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


def main() -> int:
    before = exported()
    subprocess.run([Path(sys.executable).parent / "nbdev_export"], cwd=ROOT, check=True)
    after = exported()
    stale = sorted(
        str(p.relative_to(ROOT)) for p in before.keys() | after.keys() if before.get(p) != after.get(p)
    )
    for path in stale:
        print(f"{path}: differs from its notebook; run nbdev_export and commit")
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
