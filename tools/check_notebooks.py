"""Fail on what nbdev and ruff do not see: layout, layering, widget noise, orphan modules."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]
NBS, PACKAGE = ROOT / "nbs", ROOT / "classification_mlops"
# Reading order is import order: a notebook imports only from above it and from folders above its own.
LAYERS = ["images", "db", "vision", "model", "registry", "training", "tuning", "serving"]
LAYERS += ["quality", "ui", "web", "commands"]
# Importing anything of these rooms and modules loads none of HEAVY.
LIGHT = ["text", "yaml", "check", "config", "workspace", "images", "db", "quality", "ui", "web"]
LIGHT += ["commands", "demo", "tour", "cli"]
HEAVY = ["torch", "torchvision", "mlflow", "pytorch_lightning", "albumentations", "sklearn", "matplotlib"]
MAX_EXPORT_LINES, MAX_CELLS = 45, 80


def module_notebooks() -> list[Path]:
    "Module notebooks in reading order."
    top = sorted(NBS.glob("[0-9]*.ipynb"))
    below = [path for layer in LAYERS for path in sorted((NBS / layer).glob("[0-9]*.ipynb"))]
    first = [path for path in top if path.name < "5"]
    return [*first, *below, *(path for path in top if path not in first)]


def module_name(path: Path) -> str:
    "The dotted module that `path` must export to: nbs/data/02_split.ipynb -> data.split"
    stem = path.stem.split("_", 1)[1]
    return ".".join([*path.relative_to(NBS).parts[:-1], stem])


def problems_of_any(path, nb):
    "Problems that matter in every notebook."
    if not re.match(r"# .+\n+> .+", nb.cells[0].source):
        yield "the first cell must be `# Title` followed by `> one-line summary`"
    if set(nb.metadata) != {"kernelspec"}:
        yield f"notebook metadata must be the kernel alone, not {sorted(nb.metadata)}"
    for number, cell in enumerate(nb.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error" or "widget-view" in str(output.get("data", {}).keys()):
                yield f"cell {number} holds an error or a widget view"


def problems_of_module(path, nb, seen):
    "Problems that matter in a notebook that exports a module."
    sources = [cell.source for cell in nb.cells if cell.cell_type == "code"]
    if f"#| default_exp {module_name(path)}" not in sources[0]:
        yield f"the first code cell must be `#| default_exp {module_name(path)}`"
    if len(nb.cells) > MAX_CELLS:
        yield f"{len(nb.cells)} cells: split the notebook"
    for source in (s for s in sources if re.match(r"#\|\s*export", s)):
        if source.count("\n") > MAX_EXPORT_LINES:
            yield f"an exported cell has more than {MAX_EXPORT_LINES} lines"
        kinds = {isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(source).body}
        if len(kinds) == 2:
            yield "an exported cell mixes imports with code"
    for name in re.findall(r"from classification_mlops\.(\S+) import", "\n".join(sources)):
        folder = any(module.startswith(f"{name}.") for module in seen)
        if name not in {*seen, module_name(path)} and not folder:
            yield f"imports `{name}`, which comes later in the reading order"


def orphans(known: set[str]):
    "Modules on disk that no notebook exports any more."
    for path in PACKAGE.rglob("[a-z]*.py"):
        if "migrations" in path.parts:  # Alembic's own layout
            continue
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if name not in known:
            yield f"{path.relative_to(ROOT)}: no notebook exports this module"


def loaded_heavy(names: list[str]) -> str:
    "What of `HEAVY` the import of these modules loads, or why it fails."
    modules = ", ".join(f"classification_mlops.{name}" for name in names)
    code = f"import sys, {modules}; print(*set({HEAVY}) & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return result.stderr.splitlines()[-1] if result.returncode else result.stdout.strip()


def heavy_imports(known: set[str]):
    "Light modules that load a heavy library."
    light = sorted(name for name in known if name.split(".")[0] in LIGHT)
    if loaded_heavy(light):  # All at once; one by one only to say which
        yield from (f"{name}: must stay light, {found}" for name in light if (found := loaded_heavy([name])))


def main() -> int:
    found, seen = [], set()
    for path in sorted(NBS.rglob("*.ipynb")):
        nb = nbformat.read(path, as_version=4)
        found += [f"{path.relative_to(ROOT)}: {p}" for p in problems_of_any(path, nb)]
    for path in module_notebooks():
        nb = nbformat.read(path, as_version=4)
        found += [f"{path.relative_to(ROOT)}: {p}" for p in problems_of_module(path, nb, seen)]
        seen.add(module_name(path))
    found += [*orphans(seen), *heavy_imports(seen)]
    print("\n".join(found) or "notebooks are in order")
    return len(found) > 0


if __name__ == "__main__":
    sys.exit(main())
