"""Builds the C kernels (kernels/csrc): on several threads where the compiler has OpenMP, on one where it has not.

All else about the package is in pyproject.toml. Without a C compiler the package installs all the same, and torch's own
products do; ``penstock doctor`` says so.
"""

import os
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

SOURCES = Path("kernels/csrc")
USES_OPENMP = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


class BuildKernels(build_ext):
    """Asks the compiler for OpenMP before it compiles."""

    def build_extension(self, extension: Extension) -> None:
        if self.compiler.compiler_type == "msvc":
            raise CompileError("the kernels need GCC or Clang")
        openmp = ["-fopenmp"] if self._has_openmp() else []
        extension.extra_compile_args = ["-O3", "-g0", "-Wno-psabi", "-ffp-contract=off", *openmp]
        extension.extra_link_args = [*openmp, "-lm"]
        super().build_extension(extension)

    def copy_extensions_to_source(self) -> None:
        """What an editable installation does last."""
        for earlier in Path("kernels").glob("_native.*"):
            earlier.unlink()  # one under another name would be found first
        super().copy_extensions_to_source()

    def _has_openmp(self) -> bool:
        # torch's wheels for macOS bring an OpenMP library of their own, and two in one process end it.
        if sys.platform == "darwin":
            return False
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "uses_openmp.c")
            source.write_text(USES_OPENMP)
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=["-fopenmp"])
                self.compiler.link_executable(objects, os.path.join(folder, "trial"), extra_postargs=["-fopenmp"])
            except (CompileError, LinkError):
                return False
        return True


setup(
    ext_modules=[
        Extension(
            "penstock.kernels._native",
            sources=sorted(str(source) for source in SOURCES.rglob("*.c")),
            depends=sorted(str(header) for header in SOURCES.rglob("*.h")),
            optional=True,  # else there is no installation without a compiler
            py_limited_api=True,  # it is called through ctypes: any Python will do
        )
    ],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
