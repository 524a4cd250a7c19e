"""What pyproject.toml cannot say: what is compiled; the kernel's recipe and the kernel module's
source, parts of the package; and, with SOFTCARD_WHEEL_KERNEL=FOLDER in the environment, a kernel
that was built before.
"""

import json
import os
import re
import shutil
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
KERNEL = Path("softcard", "guest", "kernel")
MODULE = Path("softcard", "bus", "host", "module", "kernel")
BUILT = ("*.o", "*.ko", "*.mod", "*.mod.c", ".*", "Module.symvers", "modules.order")
SOURCE_NOTE = """\
This folder holds a Linux kernel, built for ARCH=um. It is licensed under the GPL, version 2 only.

Its source is {source}, with the patches in ../linux/patches applied. It was configured with
../linux/config; the result is the file "config". "softcard kernel build" fetches that source and
builds the same kernel from it.
"""


def wheel_kernel() -> Path | None:
    """The folder of the kernel that the wheel is to carry, if it is to carry one."""
    folder = os.environ.get("SOFTCARD_WHEEL_KERNEL")
    if folder and not (ROOT / folder / "kernel.json").exists():
        raise SystemExit(f"SOFTCARD_WHEEL_KERNEL={folder} is no folder with a kernel")
    return ROOT / folder if folder else None


class BuildPackage(build_py):
    """Copies configuration and patches, the kernel, and the module's source, into the package."""

    def run(self) -> None:
        """See setuptools."""
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / KERNEL
        # Left from an earlier build, the kernel would end up in a wheel that is to be pure.
        for name in ("linux", "prebuilt"):
            shutil.rmtree(package / name, ignore_errors=True)
        shutil.copytree(ROOT / "linux", package / "linux")
        module = Path(self.build_lib) / MODULE
        shutil.rmtree(module, ignore_errors=True)
        shutil.copytree(ROOT / "kernel", module, ignore=shutil.ignore_patterns(*BUILT))
        kernel = wheel_kernel()
        if kernel is not None:
            self.copy_kernel(kernel, package / "prebuilt")

    @staticmethod
    def copy_kernel(kernel: Path, target: Path) -> None:
        """Copy the image and what tells where it comes from, but no headers."""
        target.mkdir()
        for name in ("linux", "config", "kernel.json"):
            shutil.copy(kernel / name, target / name)
        source = json.loads((kernel / "kernel.json").read_text())["source"]
        (target / "SOURCE").write_text(SOURCE_NOTE.format(source=source))


class BuildWheel(bdist_wheel):
    """Makes a wheel with a kernel one for the platforms that the kernel runs on."""

    def finalize_options(self) -> None:
        """See setuptools."""
        super().finalize_options()
        if wheel_kernel() is not None:
            self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        """This Python, and the C library that the kernel needs and the extensions were built with,
        whichever is newer."""
        kernel = wheel_kernel()
        if kernel is None:
            return super().get_tag()
        programs = [kernel / "linux", *Path(self.bdist_dir).glob("**/*.so")]
        found = [re.findall(rb"GLIBC_(\d+)\.(\d+)", program.read_bytes()) for program in programs]
        versions = [(int(major), int(minor)) for names in found for major, minor in names]
        python, abi, _ = super().get_tag()
        major, minor = max(versions)
        return python, abi, f"manylinux_{major}_{minor}_x86_64"


def extensions() -> list[Extension]:
    """Every Cython module. Where there is no C compiler, the package works without."""
    found: list[Extension] = cythonize(
        [
            Extension(
                ".".join(source.relative_to("src").with_suffix("").parts),
                [str(source)],
                extra_compile_args=["-fno-strict-aliasing"],
            )
            for source in Path("src").glob("**/*.pyx")
        ],
        build_dir="build/cython",
    )
    for extension in found:
        # Cython does not pass it on.
        extension.optional = True
    return found


setup(
    cmdclass={"build_py": BuildPackage, "bdist_wheel": BuildWheel},
    ext_modules=extensions(),
)
