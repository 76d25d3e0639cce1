"""Collect every sentence the package says, and keep the translations complete.

A sentence is the literal first argument of `say`, `to_say`, `UserError` and its subclasses, or the
description or unit of a configuration field, in modules and in page templates, or what a screen says by
`t("…")`.
`python tools/catalogue.py` adds what is missing to each catalogue, with an empty translation, and says how
many there are.
"""

import ast
import sys
from pathlib import Path
from string import Formatter

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po
from jinja2 import Environment
from jinja2.ext import extract_from_ast

from classification_mlops.ui.screen import sentences_of

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "classification_mlops"
SPEAKERS = {"say", "to_say", "UserError", "UsageError"}


def name_of(node) -> str:
    "The last part of what is called: `text.say` is say."
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def trees() -> dict[Path, ast.Module]:
    "Every module of the package."
    paths = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "_modidx.py" and "migrations" not in p.parts)
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def error_classes(modules) -> dict[str, bool]:
    "Subclasses of UserError, and whether they take a template as UserError does."
    found = {"UserError": True, "UsageError": True}
    classes = [node for tree in modules for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for _ in range(5):  # deep enough for any sane hierarchy, whatever the order of the modules
        for node in classes:
            parents = [found[name_of(base)] for base in node.bases if name_of(base) in found]
            if parents and node.name not in found:
                own = any(isinstance(item, ast.FunctionDef) and item.name == "__init__" for item in node.body)
                found[node.name] = parents[0] and not own
    return found


def spoken(tree, errors: dict[str, bool]):
    "Yield (line, template or None, names of values or None) for everything that `tree` says."
    inits = {
        id(call)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name in errors
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__"
    }
    constants = {}
    for node in ast.walk(tree):  # `message = "…"` right before the call keeps lines short
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.targets[0], ast.Name)
        ):
            constants.setdefault(node.targets[0].id, []).append(node.value.value)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func)
        if name in ("say", "to_say") or errors.get(name) or id(node) in inits:
            values = None if any(k.arg is None for k in node.keywords) else {k.arg for k in node.keywords}
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield node.lineno, first.value, values if name != "to_say" else None
            elif isinstance(first, ast.Name) and first.id in constants:
                yield from (
                    (node.lineno, text, None) for text in constants[first.id] if isinstance(text, str)
                )
            elif name not in ("say",):
                yield node.lineno, None, None
        for text in described(node):
            yield node.lineno, text, set()


def described(call: ast.Call):
    "Descriptions and units of pydantic fields."
    if name_of(call.func) != "Field":
        return
    for keyword in call.keywords:
        if keyword.arg == "description" and isinstance(keyword.value, ast.Constant):
            yield keyword.value.value
        if keyword.arg == "json_schema_extra" and isinstance(keyword.value, ast.Dict):
            pairs = zip(keyword.value.keys, keyword.value.values, strict=True)
            yield from (value.value for key, value in pairs if key.value == "unit")


def fields_of(template: str) -> set[str]:
    "The names of the fields of a template."
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


def sentences() -> dict[str, list[str]]:
    "Where each template is said."
    modules = trees()
    errors, found = error_classes(modules.values()), {}
    for path, tree in modules.items():
        for line, template, _ in spoken(tree, errors):
            if template:
                found.setdefault(template, []).append(f"{path.relative_to(ROOT)}:{line}")
    for path in sorted(PACKAGE.rglob("*.html")):
        for line, _, said in extract_from_ast(Environment().parse(path.read_text("utf-8")), ["say"]):
            template = said[0] if isinstance(said, tuple) else said  # A tuple where there are values
            if template:
                found.setdefault(template, []).append(f"{path.relative_to(ROOT)}:{line}")
    for path in sorted((PACKAGE / "ui" / "static").glob("*.js")):
        for template in sentences_of(path.read_text("utf-8")):
            found.setdefault(template, []).append(f"{path.relative_to(ROOT)}:1")
    return found


def problems_of_calls() -> list[str]:
    "Calls whose template cannot be collected, or lacks a value."
    modules = trees()
    errors, problems = error_classes(modules.values()), []
    for path, tree in modules.items():
        for line, template, values in spoken(tree, errors):
            where = f"{path.relative_to(ROOT)}:{line}"
            if template is None:
                if path.name != "text.py":
                    problems.append(f"{where}: the sentence must be a literal")
            elif values is not None and (missing := fields_of(template) - values):
                problems.append(f"{where}: no value for {sorted(missing)} in {template!r}")
    return problems


def catalogue(path: Path) -> Catalog:
    "The translations in a file."
    with path.open("rb") as file:
        return read_po(file, locale=path.stem)


HEADER = 'msgid ""\nmsgstr ""\n"Language: {}\\n"\n"Content-Type: text/plain; charset=utf-8\\n"\n\n'


def write(path: Path, translations: dict[str, str]) -> int:
    "Rewrite a catalogue: every sentence, in the order of the package; how many lack a translation."
    new = Catalog(locale=path.stem, fuzzy=False)
    for template, places in sorted(sentences().items(), key=lambda item: item[1][0].rpartition(":")[0]):
        files = sorted({(place.rpartition(":")[0], 1) for place in places})
        new.add(template, translations.get(template, ""), locations=files)
    with path.open("wb") as file:
        file.write(HEADER.format(path.stem).encode())
        write_po(file, new, width=110, omit_header=True, include_lineno=False)
    return sum(not message.string for message in new if message.id)


def main() -> int:
    for path in sorted((PACKAGE / "locale").glob("*.po")):
        missing = write(path, {m.id: m.string for m in catalogue(path) if m.id})
        print(f"{path.relative_to(ROOT)}: {missing} sentences to translate")
    return 0


if __name__ == "__main__":
    sys.exit(main())
