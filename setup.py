"""Only what pyproject.toml cannot say: the C++ extension and the two packages that live in folders of their own."""

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import find_packages, setup

PACKAGE_DIR = {
    "megatron_ziya": "megatron_ziya",
    "ziya_kernels": "kernels/ziya_kernels",
    "ziya_data": "data_tools/ziya_data",
}

setup(
    package_dir=PACKAGE_DIR,
    packages=[
        found
        for name, folder in PACKAGE_DIR.items()
        for found in [name, *(f"{name}.{sub}" for sub in find_packages(folder))]
    ],
    package_data={"ziya_data": ["**/*.txt", "**/*.html"], "megatron_ziya": ["**/*.html"]},
    ext_modules=[
        Pybind11Extension(
            f"ziya_data.{name}", [f"data_tools/csrc/{name.removeprefix('_')}.cpp"], cxx_std=17, extra_compile_args=["-O3"]
        )
        for name in ("_indexed", "_factory")
    ],
    cmdclass={"build_ext": build_ext},
)
