#!/bin/sh
# Build the images: `sh infra/build.sh`. Arguments go to `docker compose build`.
#
# The version of the code goes into the image, where there is no git to ask: finished stages are reused only under the
# same version. A tree with changes has none, so nothing that such an image makes is ever reused.
set -eu
cd "$(dirname "$0")/.."
FLYWEIGHT_CODE_VERSION=$(.venv/bin/python -c 'from pipeline.tracking.handover import code_version; print(code_version()[0] or "")')
export FLYWEIGHT_CODE_VERSION
echo "code version: ${FLYWEIGHT_CODE_VERSION:-none, the working tree differs from the commit}"
exec docker compose --profile cpu build "$@"
