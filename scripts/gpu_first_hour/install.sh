#!/usr/bin/env bash
# Make OUT/venv from OUT/wheels, without a network: install.sh PYTHON OUT
#
# It takes what PYTHON's own environment has, and only the rest from the wheels.
set -euo pipefail
python=$1 out=$2

cd "$out/wheels"
if [[ ! -e wheels.sha256 ]]; then
    echo "There are no wheels, and no nnunet_mamba_mis in $python: scripts/collect_wheels.py collects them" >&2
    exit 1
fi
for first in *.whl.000; do
    [[ ! -e $first ]] || cat "${first%.000}".[0-9]* >"${first%.000}"
done
lacking=$(sha256sum --check wheels.sha256 2>/dev/null | grep -vc ': OK$' || true)
if [[ $lacking != 0 ]]; then
    echo "$lacking wheels are missing or damaged: --bring all parts that scripts/collect_wheels.py wrote" >&2
    exit 1
fi

rm -rf "$out/venv"
"$python" -m venv --without-pip "$out/venv"
# not --system-site-packages, which passes over PYTHON's packages if that is in an environment itself
packages=$("$out/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# with the .pth files in there, as setuptools brings distutils, which nnU-Net imports, by one
"$python" -c 'import site; [print(f"import site; site.addsitedir({path!r})") for path in site.getsitepackages()]' \
    >"$packages/python_s_own.pth"
"$python" -m pip --python "$out/venv/bin/python" install --disable-pip-version-check --no-index --find-links . \
    nnunet-mamba-mis pytest hypothesis
"$out/venv/bin/python" -c 'import torch, nnunetv2.run.run_training, nnunet_mamba_mis.trainers; print(torch.__version__)'
