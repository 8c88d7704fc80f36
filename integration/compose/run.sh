#!/usr/bin/env bash
# Starts docker-compose.yml, runs `ls /` in a container, and expects its exec record, whole, in what stands in for Loki, and its
# span in what stands in for Jaeger.
# override.yml says what is real here and what is not. As root, with a Docker daemon; `make compose-test` sees to both.
set -euo pipefail
cd "$(dirname "$0")/../.."

binary=target/release/namespan
collector=target/ci/rotel/rotel-agent
certificates=/etc/ssl/certs/ca-certificates.crt
marker=nstest-marker
seconds=90

# Nobody there to be told that something was left out: then it is a failure.
skip() {
    if [ -n "${NAMESPAN_REQUIRE_ALL:-}" ]; then
        printf 'compose: %s\n0 passed, 1 failed\n' "$1" >&2
        exit 1
    fi
    printf 'compose: skipped: %s\n0 passed, 0 failed, 1 skipped\n' "$1"
    exit 0
}

[ -x $binary ] || skip "no $binary: make build"
[ -x $collector ] || skip "no $collector: make test-deps"
[ -e $certificates ] || skip "no $certificates: install ca-certificates"
command -v busybox >/dev/null || skip "no busybox: make test-deps"
docker info >/dev/null 2>&1 || skip "no Docker daemon answers"
if docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
elif command -v docker-compose >/dev/null; then
    compose=(docker-compose)
else
    skip "no docker-compose: make test-deps"
fi
compose+=(--project-name nstest --file docker-compose.yml --file integration/compose/override.yml)

work=$(mktemp -d)
cleanup() {
    docker rm --force $marker >/dev/null 2>&1 || true
    "${compose[@]}" down --volumes --remove-orphans --timeout 1 >/dev/null 2>&1 || true
    docker rmi --force namespan-test:{namespan,build,collector,busybox} >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

fail() {
    printf 'compose: %s\n' "$1" >&2
    "${compose[@]}" ps >&2 || true
    "${compose[@]}" logs --no-color --tail 60 >&2 || true
    printf '0 passed, 1 failed\n' >&2
    exit 1
}

# A folder as an image: import NAME FOLDER [INSTRUCTION]...
import() {
    local name=$1 folder=$2 changes=()
    shift 2
    for change in "$@"; do changes+=(--change "$change"); done
    tar --directory "$folder" --create . | docker import "${changes[@]}" - "namespan-test:$name" >/dev/null
}

# A program with the libraries it is linked to: root PROGRAM PLACE -> the folder.
root() {
    local folder library
    folder=$(mktemp -d -p "$work")
    chmod 755 "$folder"
    install -D "$1" "$folder$2"
    for library in $(ldd "$1" | grep -o '/[^ ]*'); do install -D "$library" "$folder$library"; done
    # The collector does not start without.
    install -D --mode 644 $certificates "$folder$certificates"
    mkdir "$folder"/{proc,sys,tmp}
    printf '%s\n' "$folder"
}

busybox=$(mktemp -d -p "$work")
chmod 755 "$busybox"
install -D "$(command -v busybox)" "$busybox/bin/busybox"
for applet in ls sleep; do ln -s busybox "$busybox/bin/$applet"; done
import busybox "$busybox"
# The image as its Dockerfile has it, but for its first stage: that would install a compiler. What it leaves is made here, and
# what it calls does nothing.
stage=$(mktemp -d -p "$work")
chmod 755 "$stage"
.ci/image-root $binary "$stage/src/target/image"
install -D "$(command -v busybox)" "$stage/bin/sh"
mkdir -p "$stage/usr/bin"
ln -s ../../bin/sh "$stage/usr/bin/env"
for command in bash make; do
    printf '#!/bin/sh\n' >"$stage/bin/$command"
    chmod 755 "$stage/bin/$command"
done
import build "$stage" 'ENV PATH=/bin:/usr/bin'
sed 's|^FROM [^ ]* AS build$|FROM namespan-test:build AS build|' exporter/Dockerfile >"$work/Dockerfile"
cp .dockerignore "$work/Dockerfile.dockerignore"
docker build --network none --file "$work/Dockerfile" --tag namespan-test:namespan . >"$work/build" 2>&1 ||
    { cat "$work/build" >&2; fail "exporter/Dockerfile can't be built"; }
import collector "$(root $collector /bin/rotel-agent)" 'ENTRYPOINT ["/bin/rotel-agent"]'

# The container's resource, as the collector prints it, and within it what the rules given find: they set `found`.
of_container() {
    awk -v name="$marker" -v host="$(uname --nodename)" -v id="$(cat /etc/machine-id)" '
        /^Resource(Logs?|Spans?) #/ { named = hosted = identified = imaged = exec = 0 }
        /^Scope(Logs|Spans) #/ { right = named && hosted && identified && imaged }
        $0 ~ "-> container.name: Str\\(" name "\\)$" { named = 1 }
        $0 ~ "-> container.image.name: Str\\(namespan-test\\)$" { imaged = 1 }
        $0 ~ "-> host.name: Str\\(" host "\\)$" { hosted = 1 }
        $0 ~ "-> host.id: Str\\(" id "\\)$" { identified = 1 }
        '"$1"'
        END { exit !found }'
}

record() {
    of_container '
        /^LogRecord #/ { exec = 0 }
        /^EventName: namespan.process.exec$/ { exec = 1 }
        /-> process.command_args: Slice\(Str\(ls\), Str\(\/\)\)$/ && right && exec { found = 1 }'
}

span() {
    of_container '
        /^Span #/ { ls = ended = 0 }
        /^    Name +: busybox ls$/ { ls = 1 }
        /-> process.exit.code: Int\(0\)$/ { ended = 1 }
        ls && ended && right { found = 1 }'
}

"${compose[@]}" up --detach --no-build >"$work/up" 2>&1 || { cat "$work/up" >&2; fail "the services did not start"; }
loki=$("${compose[@]}" ps --quiet loki)
jaeger=$("${compose[@]}" ps --quiet jaeger)
deadline=$((SECONDS + seconds))
# Each time anew: the first ones may come before Namespan watches.
until docker logs "$loki" 2>/dev/null | record && docker logs "$jaeger" 2>/dev/null | span; do
    [ $SECONDS -lt $deadline ] || fail "no such record and span of '$marker' within $seconds s"
    docker run --rm --name $marker --network none namespan-test:busybox ls / >/dev/null || fail "a container did not run"
done

# The image's own health check, and the same question for readiness.
namespan=$("${compose[@]}" ps --quiet namespan)
mapfile -t check < <(docker inspect --format '{{range .Config.Healthcheck.Test}}{{println .}}{{end}}' "$namespan" | sed '/^$/d; /^CMD$/d')
[ ${#check[@]} -gt 1 ] || fail "the image has no health check"
docker exec "$namespan" "${check[@]}" >/dev/null || fail "the health check fails: ${check[*]}"
docker exec "$namespan" /usr/local/bin/namespan health --listen 127.0.0.1:9464 >/dev/null || fail "it is not ready"
if docker exec "$namespan" /usr/local/bin/namespan health --listen 127.0.0.1:9 2>/dev/null; then
    fail "it is well where nobody listens"
fi
printf 'compose: the exec and the span of %s went through every service\n1 passed, 0 failed\n' $marker
