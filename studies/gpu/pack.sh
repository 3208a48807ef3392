#!/usr/bin/env bash
# Packs what a machine without a network needs for this study, in addition to torch, torchvision, timm, scikit-learn, pandas,
# pyarrow, matplotlib and pytest:
#     bash studies/gpu/pack.sh wheels 3.12
# fills the folder `wheels` for Python 3.12 on x86-64 Linux.
set -euo pipefail
cd "$(dirname "$0")/../.."
wheels=${1:?name a folder for the wheels} python=${2:-3.12}
platforms=()
for version in 17 24 27 28 31 34 35; do platforms+=(--platform "manylinux_2_${version}_x86_64"); done
needed=(alembic annotated-types click colorlog filelock greenlet imagehash mako optuna pluggy psutil pydantic pydantic-core
	pywavelets rich sqlalchemy typing-inspection)
python3 -m pip wheel --quiet --no-deps --wheel-dir "$wheels" .
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$python" --implementation cp \
	"${platforms[@]}" --platform manylinux2014_x86_64 --dest "$wheels" --constraint constraints.txt "${needed[@]}"
