"""What setup.cfg cannot say: the wheel carries the hooks, the examples and the man pages."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Put them below hpcimg/share, where `hpcimg hooks` finds the hooks."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # they are beside the package
        for directory in ("prolog", "epilog", "etc", "man"):
            self.copy_tree(directory, str(Path(self.build_lib, "hpcimg", "share", directory)))


setup(cmdclass={"build_py": BuildPy})
