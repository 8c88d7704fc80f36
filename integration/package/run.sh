#!/usr/bin/env bash
# Takes the Debian package of `make deb` apart, installs and removes it in a folder of its own, and has systemd look at the unit.
# As root; `make package-test` sees to the rest.
set -euo pipefail
cd "$(dirname "$0")/../.."

# What systemd-analyze (of systemd 252) may give the unit, times ten: 0 is best, 100 worst.
exposure=28

passed=0
fail() {
    printf 'package: %s\n%d passed, 1 failed\n' "$1" $passed >&2
    exit 1
}
pass() { passed=$((passed + 1)); }

packages=(target/package/*.deb)
[ ${#packages[@]} = 1 ] && [ -e "${packages[0]}" ] || fail "not one package in target/package: make deb"
package=${packages[0]}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The files that are there, and nothing else but documentation.
dpkg-deb --extract "$package" "$work/tree"
program=$work/tree/usr/bin/namespan
"$program" --version >/dev/null || fail "the program does not run"
expected=(./etc/namespan/namespan.yaml ./usr/bin/namespan
    ./usr/share/bash-completion/completions/namespan ./usr/share/zsh/vendor-completions/_namespan
    ./usr/share/fish/vendor_completions.d/namespan.fish)
# A page for the command that these words are, and for each of its subcommands.
pages() {
    local subcommand subcommands name=namespan
    for subcommand; do name+=-$subcommand; done
    expected+=("./usr/share/man/man1/$name.1.gz")
    subcommands=$("$program" "$@" --help | awk '/^Commands:/ { on = 1; next } /^$/ { on = 0 } on && /^  [a-z]/ { print $1 }')
    for subcommand in $subcommands; do
        [ "$subcommand" = help ] || pages "$@" "$subcommand"
    done
}
before=${#expected[@]}
pages
[ $((${#expected[@]} - before)) -ge 7 ] || fail "--help lists few subcommands"
unit=$(cd "$work/tree" && find . -name namespan.service)
expected+=("${unit:-no unit}")
found=$(cd "$work/tree" && find . -type f -not -path './usr/share/doc/*' | LC_ALL=C sort)
diff <(printf '%s\n' "${expected[@]}" | LC_ALL=C sort) <(printf '%s\n' "$found") || fail "these files differ"
pass
for document in THIRD-PARTY namespan.cdx.json copyright; do
    [ -n "$(find "$work/tree/usr/share/doc/namespan" -name "$document*")" ] || fail "no $document"
done
pass

# Its settings and unit are those of the sources, and good.
cmp "$work/tree/etc/namespan/namespan.yaml" otel-config/namespan.yaml || fail "other settings"
cmp "$work/tree/$unit" otel-config/namespan.service || fail "another unit"
[ "$(dpkg-deb --info "$package" conffiles)" = /etc/namespan/namespan.yaml ] || fail "the settings are no conffile"
dpkg-deb --field "$package" Depends | grep -q 'libc6 (>=' || fail "no dependency on the C library"
pass
if command -v systemd-analyze >/dev/null; then
    score=$(systemd-analyze security --offline=true --threshold=$exposure otel-config/namespan.service 2>&1) ||
        fail "the unit's exposure: ${score##*$'\n'}"
    # What it does not know, it would leave out.
    if grep -q 'Failed to parse' <<<"$score"; then fail "$(grep 'Failed to parse' <<<"$score")"; fi
    pass
elif [ -n "${NAMESPAN_REQUIRE_ALL:-}" ]; then
    fail "no systemd-analyze: make test-deps"
fi

# Installed, changed, removed, purged: what its administrator wrote stays until the last.
command -v busybox >/dev/null || fail "no busybox: make test-deps"
root=$work/root
mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,var/lib/dpkg/{info,updates},etc}
touch "$root/var/lib/dpkg/"{status,available}
install "$(command -v busybox)" "$root/bin/busybox"
for applet in sh rm true; do ln -s busybox "$root/bin/$applet"; done
in_root() { dpkg --root="$root" --force-depends --force-bad-path --log=/dev/null "$@" >>"$work/dpkg" 2>&1 || { cat "$work/dpkg" >&2; fail "dpkg $*"; }; }
settings=$root/etc/namespan/namespan.yaml
in_root --install "$package"
[ "$(stat --format '%a %U' "$settings")" = '640 root' ] || fail "who may read the settings: $(stat --format '%a %U' "$settings")"
[ -x "$root/usr/bin/namespan" ] || fail "not installed"
[ -z "$(find "$root/etc/systemd" -name 'namespan*' 2>/dev/null)" ] || fail "it is enabled, and nobody asked for it"
echo '# ours' >>"$settings"
wanted=$root/etc/systemd/system/multi-user.target.wants/namespan.service
install -D /dev/null "$wanted"
in_root --remove namespan
[ ! -e "$root/usr/bin/namespan" ] || fail "not removed"
grep -q '^# ours$' "$settings" || fail "removing took the settings"
in_root --purge namespan
[ ! -e "$settings" ] && [ ! -e "$wanted" ] || fail "purging left the settings, or that it was enabled"
pass

printf 'package: %s is whole, installs and goes\n%d passed, 0 failed\n' "${package##*/}" $passed
