"""Run a program that cannot import some packages: without_packages.py NAMES PROGRAM ARGUMENTS."""

import runpy
import sys

names, *sys.argv = sys.argv[1:]
sys.modules.update(dict.fromkeys(names.split(",")))  # type: ignore[arg-type]
runpy.run_path(sys.argv[0], run_name="__main__")
