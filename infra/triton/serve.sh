#!/bin/sh
# Serve the repository that promotion writes. The flags are those of pipeline/serving/triton/server.py: a test compares them.
# At start only promoted models are loaded, so that a restart serves the champion and no half-tried candidate. Model
# control takes the key over gRPC; over HTTP it is closed, with a key that nobody holds.
set -eu
repository=/srv/models/triton_repo
key=$(cat "${SECRETS:-/run/secrets}/triton_control_key")
nobody=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
guarded=model-repository,logging,trace

set --
for config in "${REPOSITORY:-$repository}"/*/config.pbtxt; do
    model=$(basename "$(dirname "$config")")
    case $model in
    '*' | *__cand* | *__eval_*) ;;
    *) set -- "$@" "--load-model=$model" ;;
    esac
done

exec tritonserver \
    --model-repository="$repository" \
    --model-control-mode=explicit \
    --disable-auto-complete-config \
    --strict-readiness=false \
    --exit-on-error=false \
    --exit-timeout-secs=20 \
    --grpc-infer-allocation-pool-size=128 \
    --grpc-http2-min-recv-ping-interval-without-data=10000 \
    --cache-config=local,size=67108864 \
    --grpc-restricted-protocol="$guarded:flyweight-control=$key" \
    --http-restricted-api="$guarded:flyweight-control=$nobody" \
    "$@"
