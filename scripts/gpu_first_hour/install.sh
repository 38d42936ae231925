#!/usr/bin/env bash
# Create OUT/venv from OUT/wheels without a network: install.sh PYTHON OUT
#
# The environment uses the packages of PYTHON's own environment, and installs only missing ones from the wheels.
set -euo pipefail
python=$1 out=$2

cd "$out/wheels"
if [[ ! -e wheels.sha256 ]]; then
    echo "neither $python nor $out/wheels has nnunet_mamba_mis: run scripts/collect_wheels.py and --bring its parts" >&2
    exit 1
fi
for first in *.whl.000; do
    [[ ! -e $first ]] || cat "${first%.000}".[0-9]* >"${first%.000}"
done
unusable=$(sha256sum --check wheels.sha256 2>/dev/null | grep -vc ': OK$' || true)
if [[ $unusable != 0 ]]; then
    echo "$unusable wheels are missing or damaged: --bring all parts that scripts/collect_wheels.py wrote" >&2
    exit 1
fi

rm -rf "$out/venv"
"$python" -m venv --without-pip "$out/venv"
# not --system-site-packages, which ignores PYTHON's packages if PYTHON is itself in a virtual environment
packages=$("$out/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# addsitedir also runs .pth files: through one of them, setuptools provides distutils, which nnU-Net imports
"$python" -c 'import site; [print(f"import site; site.addsitedir({path!r})") for path in site.getsitepackages()]' \
    >"$packages/python_s_own.pth"
"$python" -m pip --python "$out/venv/bin/python" install --disable-pip-version-check --no-index --find-links . \
    nnunet-mamba-mis pytest hypothesis
"$out/venv/bin/python" -c 'import torch, nnunetv2.run.run_training, nnunet_mamba_mis.trainers; print(torch.__version__)'
