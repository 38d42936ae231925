"""The build step that pyproject.toml cannot express: the file that lets nnU-Net find the trainers."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

TRAINER_FOLDER = "nnunet_ext_trainers"

# One line that Python runs at start. nnU-Net looks trainers up in the directories of nnUNet_extTrainer; ours is
# appended, once, to whatever the user has there. `sitedir` is the directory of the .pth file.
PTH = (
    "import os; p = {folder}; v = os.environ.get('nnUNet_extTrainer', ''); "
    "p in v.split(os.pathsep) or os.environ.__setitem__('nnUNet_extTrainer', v + os.pathsep + p if v else p)\n"
)


class BuildPy(build_py):
    """Also writes nnunet_mamba_mis.pth to the top of site-packages, from a wheel and from an editable install alike."""

    def run(self):
        """Build the modules, then the .pth file."""
        super().run()
        self._pth.parent.mkdir(parents=True, exist_ok=True)
        self._pth.write_text(PTH.format(folder=self._folder), encoding="utf-8")

    def get_outputs(self, include_bytecode=True):
        """List the .pth file as well, so that it is uninstalled with the rest."""
        return [*super().get_outputs(include_bytecode), str(self._pth)]

    @property
    def _pth(self) -> Path:
        # an editable wheel takes nothing from build_lib; what lies in install_lib is packed as it is
        root = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        return Path(root) / "nnunet_mamba_mis.pth"

    @property
    def _folder(self) -> str:
        if self.editable_mode:
            return repr(str(Path(__file__).resolve().parent / "nnunet_mamba_mis" / TRAINER_FOLDER))
        return f"os.path.join(sitedir, 'nnunet_mamba_mis', '{TRAINER_FOLDER}')"


setup(cmdclass={"build_py": BuildPy})
