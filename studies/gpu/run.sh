#!/usr/bin/env bash
# Measures autotl on one GPU, in less than 8 minutes:
#     bash studies/gpu/run.sh OUT PHOTOS [OPTIONS OF autotl search …]
# writes OUT/gpu.json and OUT/gpu.md. PHOTOS is an image folder for the searches; `--backbones`, `--weights` and other
# options are those of the searches. Without a network, WHEELS names the folder that pack.sh has filled.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ -n "${WHEELS:-}" ]; then
	site=$(mktemp -d)
	python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
	export PYTHONPATH="$site"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
exec python3 studies/gpu/measure.py "$@"
