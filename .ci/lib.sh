# Shared by the scripts beside it; they run from anywhere.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$HOME/.cargo/bin:$PATH"

fail() {
    printf 'namespan: %s\n' "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo --preserve-env "$@"; fi
}

apt_install() {
    command -v apt-get >/dev/null || return 1
    local missing=() package
    for package in "$@"; do
        dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
            missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return 0
    printf 'namespan: installing %s\n' "${missing[*]}" >&2
    as_root apt-get update -q >/dev/null
    # Never at the price of another package: rustc-web and Debian's own rustc or rustup exclude each other.
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-remove --no-install-recommends "${missing[@]}" >/dev/null
}
