"""Find what plans and checkpoints name in nnU-Net's source, and import its module alone.

nnU-Net itself imports every module of a folder until one has the name: ten seconds for its trainers.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TRAINERS = "nnunetv2.training.nnUNetTrainer"
_BASE_TRAINER = "nnUNetTrainer"


def find_definition(package: str, name: str) -> Any:
    """Return a class or function that a module of a package defines, or None.

    Args:
        package: Dotted name of the package, which is searched with those in it.
        name: Of the class or function.
    """
    for module, _ in _defining(package, name):
        return getattr(importlib.import_module(module), name)
    return None


def overrides(trainer: str, method: str) -> bool:
    """Return whether one of nnU-Net's own trainers may do something else in a method than its base of all does.

    Decided by the source: importing a trainer takes seconds. True where the source does not tell.
    """
    seen: set[str] = set()
    while trainer != _BASE_TRAINER and trainer not in seen:
        seen.add(trainer)
        definition = next((found for _, found in _defining(_TRAINERS, trainer)), None)
        if not isinstance(definition, ast.ClassDef) or definition.keywords or definition.decorator_list:
            return True
        plain = (ast.FunctionDef, ast.Expr)  # a docstring is an expression
        if len(definition.bases) != 1 or not all(isinstance(statement, plain) for statement in definition.body):
            return True
        if any(getattr(statement, "name", "") == method for statement in definition.body):
            return True
        base = definition.bases[0]
        trainer = base.id if isinstance(base, ast.Name) else ""
    return trainer != _BASE_TRAINER


def find_trainer(name: str) -> Any:
    """Return a trainer, the same that nnU-Net would find.

    Raises:
        Exception: Its module cannot be imported, or nnU-Net finds none.
    """
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    trainer = find_definition(_TRAINERS, name)
    if trainer is not None:
        return trainer
    # these are small, and classes in them may be made without a definition, as ours of other lengths
    for folder in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep):
        if folder.strip() and os.path.exists(folder):
            trainer = recursive_find_python_class(
                folder, name, None, base_folder=folder, cleanup_imports_from_base_folder=True
            )
            if trainer is not None:
                return trainer
    return recursive_find_trainer_class_by_name(name)


def _defining(package: str, name: str) -> Iterator[tuple[str, ast.stmt]]:
    """Modules that define it at their top level, in the order in which nnU-Net looks at them, with the definition."""
    if not name.isidentifier():
        return
    definition = re.compile(rf"^(?:class|def) {name}\b", re.MULTILINE)
    for module, path in _modules(package):
        text = path.read_text(encoding="utf-8", errors="replace")
        if definition.search(text):
            for statement in ast.parse(text).body:
                if isinstance(statement, ast.ClassDef | ast.FunctionDef) and statement.name == name:
                    yield module, statement


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    """Name and file of each module of a package, as nnU-Net goes through them: those of a folder before its folders."""
    specification = importlib.util.find_spec(package)
    folders = list(specification.submodule_search_locations or ()) if specification else []
    found = list(pkgutil.iter_modules(folders))
    for finder, name, is_package in found:
        path = Path(getattr(finder, "path", "")) / f"{name}.py"
        if not is_package and path.is_file():
            yield f"{package}.{name}", path
    for _, name, is_package in found:
        if is_package:
            yield from _modules(f"{package}.{name}")
