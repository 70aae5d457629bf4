#!/bin/sh
# Builds the image and runs it as a platform would: no root, no network, nothing writable but /tmp and /work.
# Opt-in, as it takes minutes: sh infra/check_image.sh
#   ENGINE=podman|docker   BUILD_FLAGS=...   RUN_FLAGS=...   IMAGE=segwatch:check
#   STAND_IN=1   where no registry can be reached: a base made by debootstrap bears the name in the Dockerfile
set -eu
cd "$(dirname "$0")/.."
ENGINE=${ENGINE:-$(command -v podman || command -v docker || true)}
IMAGE=${IMAGE:-segwatch:check}
BUILD_FLAGS=${BUILD_FLAGS:-}
RUN_FLAGS=${RUN_FLAGS:-}
[ -n "$ENGINE" ] || { echo "there is no podman and no docker: install one, or name it with ENGINE=" >&2; exit 2; }

fail() { echo "error: $*" >&2; exit 1; }

# Debian's Python in place of the official image's; as root, and with this machine's certificates.
make_stand_in() {
  base=$(sed -n 's/^FROM \([^ ]*\).*/\1/p' Dockerfile | sort -u)
  "$ENGINE" image exists "docker.io/library/$base" && return
  root=$(mktemp -d)
  debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates \
    "${base##*-}" "$root" >/dev/null
  for name in python pip; do ln -sf "/usr/bin/${name}3" "$root/usr/local/bin/$name"; done
  cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
  tar -C "$root" -c . | "$ENGINE" import - "docker.io/library/$base" >/dev/null
  rm -rf "$root"
}

run() { # shellcheck disable=SC2086
  "$ENGINE" run --rm --read-only --network=none --cap-drop=ALL --tmpfs /tmp --tmpfs /work:mode=1777 $RUN_FLAGS "$@"
}

if [ -n "${STAND_IN:-}" ]; then
  make_stand_in
  BUILD_FLAGS="--pull=never --network=host --isolation=chroot $BUILD_FLAGS"
  # Inside of a container or a sandbox no limit can be raised, only lowered.
  RUN_FLAGS="--ulimit nofile=1024:1024 --ulimit nproc=1024:1024 $RUN_FLAGS"
fi
started=$(date +%s)
# shellcheck disable=SC2086
"$ENGINE" build $BUILD_FLAGS --build-arg REVISION="$(git rev-parse HEAD)" -t "$IMAGE" .
echo "built in $(($(date +%s) - started)) s, $("$ENGINE" image inspect --format '{{.Size}}' "$IMAGE") bytes"

run "$IMAGE" --version
[ "$(run --entrypoint id "$IMAGE" -u)" != 0 ] || fail "the image runs as root"
for tool in gcc cc make git; do
  run --entrypoint sh "$IMAGE" -c "command -v $tool" && fail "the image holds $tool"
done
run --entrypoint python3 "$IMAGE" -c "import kfp.dsl.executor_main, google.cloud.bigquery, gcsfs" \
  || fail "the image cannot run a step of a pipeline"
run --entrypoint sh "$IMAGE" -ec '
  segwatch init
  segwatch create
  segwatch data insert --segments 3 --days 200
  segwatch train
  segwatch infer
  segwatch report
  ls -l segwatch-report.html' || fail "the daily job does not run on a read-only root"
echo "the image builds and runs"
