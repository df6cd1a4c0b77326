#!/usr/bin/env bash
# Build wheels that carry the CPU kernels:  bash scripts/wheels.sh [DIRECTORY]   (default dist)
#
# For x86-64 (AVX2, AVX-512, AVX-512 with bf16) and for aarch64 (NEON), on any machine: the compiler is the package
# ziglang, which the build installs for itself. At the first time it compiles its C++ library too, for some minutes.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
for platform in manylinux_2_28_x86_64 manylinux_2_28_aarch64; do
    ACCELNET_WHEEL=$platform "${PYTHON:-python3}" -m pip wheel --no-deps --wheel-dir "${1:-dist}" "$root"
done
