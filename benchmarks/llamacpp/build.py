"""Build llama.cpp's diffusion example from the source package of llama-cpp-python, which holds all of llama.cpp.

    python -m benchmarks.llamacpp.build FOLDER

Needs pip, cmake, ninja and a C++ compiler; half an hour on one core. What is there already is not made again.

For this machine's processor, but for AMX: llama.cpp's products with AMX end in a segmentation fault in this version
(``ggml_backend_amx_mul_mat``), and where a processor has AMX, what else it has is named instead.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
from collections.abc import Collection
from pathlib import Path

PACKAGE = "llama-cpp-python==0.3.36"
PROGRAMS = ("llama-diffusion-cli", "llama-quantize")
_OPTIONS = (
    "CMAKE_BUILD_TYPE=Release", "BUILD_SHARED_LIBS=OFF", "LLAMA_BUILD_EXAMPLES=ON",
    "LLAMA_BUILD_TOOLS=ON", "LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_SERVER=OFF", "LLAMA_CURL=OFF", "LLAMA_OPENSSL=OFF",
)  # fmt: skip
_FLAGS = {  # of /proc/cpuinfo, and the options of llama.cpp's build for them
    "sse4_2": "SSE42", "avx": "AVX", "avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "bmi2": "BMI2", "avx512f": "AVX512",
    "avx512vbmi": "AVX512_VBMI", "avx512_vnni": "AVX512_VNNI", "avx512_bf16": "AVX512_BF16",
}  # fmt: skip


def instructions(flags: Collection[str]) -> list[str]:
    """The options for a processor with these flags: native, or, where it has AMX, all but that."""
    if "amx_tile" not in flags:
        return ["GGML_NATIVE=ON"]
    return ["GGML_NATIVE=OFF", *(f"GGML_{name}={'ON' if flag in flags else 'OFF'}" for flag, name in _FLAGS.items())]


def _flags() -> list[str]:
    """Of this machine's processor, where the system tells."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])


def source(folder: Path) -> Path:
    """llama.cpp's source in a folder, fetched into it where it is not there."""
    found = sorted(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))
    if not found:
        pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder))
        subprocess.run([*pip, PACKAGE], check=True)
        for archive in folder.glob("llama_cpp_python-*.tar.gz"):
            with tarfile.open(archive) as held:
                held.extractall(folder, filter="data")
        found = sorted(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))
    return found[-1]


def build(folder: Path, jobs: int = 1) -> Path:
    """The folder of the programs, built where they are not there."""
    made = folder / "build"
    if not all((made / "bin" / name).exists() for name in PROGRAMS):
        options = [f"-D{option}" for option in (*_OPTIONS, *instructions(_flags()))]
        subprocess.run(["cmake", "-S", str(source(folder)), "-B", str(made), "-G", "Ninja", *options], check=True)
        subprocess.run(["ninja", "-C", str(made), f"-j{jobs}", *(f"bin/{name}" for name in PROGRAMS)], check=True)
    return made / "bin"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    print(build(given.folder.resolve(), given.jobs))
