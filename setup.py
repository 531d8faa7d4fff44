"""What setup.cfg cannot say: ``configs/`` becomes a folder of the package when that is built."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfigs(build_py):
    """The package, and in it ``configs/``; an editable install reads the files where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            copytree("configs", Path(self.build_lib, "mllm_lit", "configs"), dirs_exist_ok=True)


setup(cmdclass={"build_py": WithConfigs})
