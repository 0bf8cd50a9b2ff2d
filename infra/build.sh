#!/bin/sh
# Build the images: `sh infra/build.sh`. Arguments go to `docker compose build`.
#
# The commit goes into the image, where there is no git to ask: runs in MLflow are tagged with it. What is reused does not
# depend on it, but on the contents of the files in the image.
set -eu
cd "$(dirname "$0")/.."
FLYWEIGHT_GIT_COMMIT=$(git rev-parse HEAD 2>/dev/null || true)
if [ -n "$FLYWEIGHT_GIT_COMMIT" ] && [ -n "$(git status --porcelain)" ]; then
    FLYWEIGHT_GIT_COMMIT=$FLYWEIGHT_GIT_COMMIT-dirty
fi
export FLYWEIGHT_GIT_COMMIT
echo "commit: ${FLYWEIGHT_GIT_COMMIT:-none, this is no git repository}"
exec docker compose --profile cpu build "$@"
