"""Only what pyproject.toml cannot say: the C++ extension and the two packages that live in folders of their own."""

from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import find_packages, setup

PACKAGE_DIR = {
    "megatron_ziya": "megatron_ziya",
    "ziya_kernels": "kernels/ziya_kernels",
    "ziya_data": "data_tools/ziya_data",
}

CSRC = "data_tools/csrc"


def extension(name: str) -> Pybind11Extension:
    """`ziya_data._NAME` from csrc/NAME.cpp; a change of any header builds it again."""
    headers = [str(path) for path in sorted(Path(CSRC).rglob("*.h"))]
    return Pybind11Extension(
        f"ziya_data._{name}", [f"{CSRC}/{name}.cpp"], depends=headers, cxx_std=17, extra_compile_args=["-O3"]
    )


setup(
    package_dir=PACKAGE_DIR,
    packages=[
        found
        for name, folder in PACKAGE_DIR.items()
        for found in [name, *(f"{name}.{sub}" for sub in find_packages(folder))]
    ],
    package_data={"ziya_data": ["**/*.txt", "**/*.html", "*.pyi"], "megatron_ziya": ["**/*.html"]},
    ext_modules=[extension("indexed"), extension("factory")],
    cmdclass={"build_ext": build_ext},
)
