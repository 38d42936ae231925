"""Find the classes of nnU-Net that plans and checkpoints name, and import only their modules.

nnU-Net itself imports every module of a folder until one defines the class, which takes ten seconds for its trainers.
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
        package: Dotted name of the package to search, including its subpackages.
        name: Name of the class or function.
    """
    for module, _ in _defining(package, name):
        return getattr(importlib.import_module(module), name)
    return None


def overrides(trainer: str, method: str) -> bool:
    """Return whether a trainer may override a method of nnUNetTrainer.

    Read only the source of nnU-Net's own trainers, as importing a trainer takes seconds. Return True for any other
    trainer, or if the source is inconclusive.
    """
    seen: set[str] = set()
    while trainer != _BASE_TRAINER and trainer not in seen:
        seen.add(trainer)
        definition = next((statement for _, statement in _defining(_TRAINERS, trainer)), None)
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
    """Return the trainer class that nnU-Net would find.

    Raises:
        Exception: The trainer's module cannot be imported, or nnU-Net finds no such trainer.
    """
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    trainer = find_definition(_TRAINERS, name)
    if trainer is not None:
        return trainer
    # the folders in nnUNet_extTrainer are small, and their modules may create classes that no source defines, such as
    # this package's trainers for other numbers of epochs
    for folder in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep):
        if folder.strip() and os.path.exists(folder):
            trainer = recursive_find_python_class(
                folder, name, None, base_folder=folder, cleanup_imports_from_base_folder=True
            )
            if trainer is not None:
                return trainer
    return recursive_find_trainer_class_by_name(name)


def _defining(package: str, name: str) -> Iterator[tuple[str, ast.stmt]]:
    """Yield modules that define a name at their top level, in nnU-Net's search order, with the definition."""
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
    """Yield name and file of each module of a package in nnU-Net's search order: modules before subpackages."""
    specification = importlib.util.find_spec(package)
    folders = list(specification.submodule_search_locations or ()) if specification else []
    modules = list(pkgutil.iter_modules(folders))
    for finder, name, is_package in modules:
        path = Path(getattr(finder, "path", "")) / f"{name}.py"
        if not is_package and path.is_file():
            yield f"{package}.{name}", path
    for _, name, is_package in modules:
        if is_package:
            yield from _modules(f"{package}.{name}")
