"""What setup.cfg cannot say: the examples of the checkout travel in the wheel, as verl_aiops/examples."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithExamples(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # which runs from the checkout, where they are
            target = Path(self.build_lib) / "verl_aiops" / "examples"
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            shutil.copytree("examples", target, ignore=shutil.ignore_patterns("__pycache__", "*.py[cod]"))


setup(cmdclass={"build_py": WithExamples})
