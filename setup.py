"""Build what pyproject.toml cannot express: the file that lets nnU-Net find the trainers, and the native code."""

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

TRAINER_FOLDER = "nnunet_ext_trainers"

# Python runs this line at startup. nnU-Net searches the directories in nnUNet_extTrainer for trainers; the line appends
# this package's directory, unless the variable already contains it. `sitedir` is the directory of the .pth file.
PTH = (
    "import os; p = {folder}; v = os.environ.get('nnUNet_extTrainer', ''); "
    "p in v.split(os.pathsep) or os.environ.__setitem__('nnUNet_extTrainer', v + os.pathsep + p if v else p)\n"
)

FLAGS = ["-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-pthread"]
# One library per instruction set; the best one is selected at run time. Never -march=native, so that a wheel also runs
# on other machines. Every x86-64 and 64-bit Arm machine has vectors of 16 bytes.
BASELINE = {"baseline": ["-DVECTOR_BYTES=16"]}
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mprefer-vector-width=512"]
X86 = BASELINE | {"avx2": ["-DVECTOR_BYTES=32", *AVX2], "avx512": ["-DVECTOR_BYTES=64", *AVX512]}
INSTRUCTION_SETS = X86 if platform.machine().lower() in ("x86_64", "amd64") else BASELINE


class BuildPy(build_py):
    """Also write nnunet_mamba_mis.pth to the top of site-packages, for wheels and editable installs."""

    def run(self) -> None:
        """Build the modules, then the .pth file."""
        super().run()
        self._pth.parent.mkdir(parents=True, exist_ok=True)
        self._pth.write_text(PTH.format(folder=self._folder), encoding="utf-8")

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return the outputs including the .pth file, so that it is uninstalled with the rest."""
        return [*super().get_outputs(include_bytecode), str(self._pth)]

    @property
    def _pth(self) -> Path:
        # an editable wheel ignores build_lib, but includes the files in install_lib
        root = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        return Path(root) / "nnunet_mamba_mis.pth"

    @property
    def _folder(self) -> str:
        if self.editable_mode:
            return repr(str(Path(__file__).resolve().parent / "nnunet_mamba_mis" / TRAINER_FOLDER))
        return f"os.path.join(sitedir, 'nnunet_mamba_mis', '{TRAINER_FOLDER}')"


class BuildScan(build_ext):
    """Compile csrc/native.cpp to plain shared libraries for ctypes, without Python.h and torch headers."""

    def build_extension(self, ext: Extension) -> None:
        """Build the optional library of one instruction set; without a compiler, installation continues."""
        flags = INSTRUCTION_SETS[ext.name.rpartition("_")[2]]
        temporary = str(Path(self.build_temp) / ext.name)
        objects = self.compiler.compile(
            ext.sources, output_dir=temporary, extra_postargs=[*FLAGS, *flags], depends=ext.depends
        )
        target = self.get_ext_fullpath(ext.name)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, target, extra_postargs=["-pthread"], target_lang="c++")

    def get_ext_filename(self, ext_name: str) -> str:
        """Return a name without Python's version and ABI, as the library depends on neither."""
        return str(Path(*ext_name.split("."))) + (".dll" if sys.platform == "win32" else ".so")


class AnyPythonWheel(bdist_wheel):
    """Build a wheel that contains native code for one platform and works with every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return a tag without Python version and ABI."""
        return "py3", "none", super().get_tag()[2]


# scripts/build_wheels.py reads the flags without building
if __name__ == "__main__":
    setup(
        cmdclass={"build_py": BuildPy, "build_ext": BuildScan, "bdist_wheel": AnyPythonWheel},
        ext_modules=[
            Extension(
                f"nnunet_mamba_mis.ops._native_{name}",
                sources=["csrc/native.cpp"],
                depends=[str(header) for header in sorted(Path("csrc").glob("*.h"))],
                optional=True,
            )
            for name in INSTRUCTION_SETS
        ],
    )
