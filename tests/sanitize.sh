#!/usr/bin/env bash
# Run the tests of the native operations under GCC's address and undefined behaviour sanitizers.
# The script replaces the libraries of the installed package (PYTHON=... names the interpreter), and restores them at
# the end.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v "${PYTHON:-python}")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
cd /  # where Python does not find the source tree
libraries=$("$python" -c "import nnunet_mamba_mis.ops as ops; print(ops.__path__[0])")
saved=$(mktemp -d)
cp "$libraries"/_native_*.so "$saved"
trap 'cp "$saved"/_native_*.so "$libraries"; rm -r "$saved"' EXIT
flags="-std=c++17 -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined"
flags="$flags -fPIC -shared -fvisibility=hidden -ffp-contract=fast -Wno-psabi -pthread"
for library in "$libraries"/_native_*.so; do
    case $library in
        *baseline*) vectors="-DVECTOR_BYTES=16" ;;
        *avx2*) vectors="-DVECTOR_BYTES=32 -mavx2 -mfma" ;;
        *avx512*) vectors="-DVECTOR_BYTES=64 -mavx2 -mfma -mavx512f -mavx512dq -mavx512vl -mavx512bw" ;;
    esac
    g++ $flags $vectors "$root/csrc/native.cpp" -o "$library"
done
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
    "$python" -m pytest -q "$root"/tests/ops/test_{pixelwise,s6,selective_scan}.py "$root"/tests/architectures/test_native_blocks.py \
    -k "not memory and not compiles and not opcheck"
