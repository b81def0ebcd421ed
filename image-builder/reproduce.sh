#!/usr/bin/env bash
# Builds everything once more, as another user, in another folder, later, in another time zone, with another umask and on one processor, and compares
# that with what `make images` has built here. With `--keep-kernel` the kernel is taken from the cache, which spares most of the time.
set -euo pipefail
cd "$(dirname "$0")/.."
keep_kernel=${1:-}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/nacre
cargo_home=${CARGO_HOME:-$HOME/.cargo}
work=$(mktemp -d /var/tmp/nacre-reproduce.XXXXXX)
trap 'rm -rf "$work"' EXIT

say() { printf '\033[1m==>\033[0m %s\n' "$1"; }

say "reproduce: a copy of the sources in $work"
umask 077
mkdir -p "$work/home/cargo" "$work/cache/nacre" "$work/another/folder"
git ls-files -z | tar --create --null --files-from=- | tar --extract --no-same-permissions --directory "$work/another/folder"
# What was fetched is checked by its digest wherever it lies.
cp -r "$cargo_home/registry" "$work/home/cargo/"
cp -r "$cache/packages" "$work/cache/nacre/"
if [ -n "$keep_kernel" ]; then cp -r "$cache/kernel" "$work/cache/nacre/"; fi

say "reproduce: build there"
unshare --user --map-user=4242 --map-group=4242 -- taskset --cpu-list 0 \
    env --ignore-environment PATH="$PATH" HOME="$work/home" CARGO_HOME="$work/home/cargo" XDG_CACHE_HOME="$work/cache" \
        RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}" TZ=Pacific/Chatham LC_ALL=C.UTF-8 \
        make --directory "$work/another/folder" images

say "reproduce: compare"
here=target/dist there=$work/another/folder/target/dist different=0
while read -r file; do
    if cmp --silent "$here/$file" "$there/$file"; then
        printf 'same       %s  %s\n' "$(sha256sum <"$here/$file" | cut -c1-16)" "$file"
    else
        printf 'different  %s\n' "$file"
        different=$((different + 1))
    fi
done < <({ (cd "$here" && find . -type f); (cd "$there" && find . -type f); } | sort -u)
if [ "$different" != 0 ]; then
    "$here/bin/nacre-image" diff "$here/share/nacre" "$there/share/nacre" || true
    echo "reproduce: $different files are different" >&2
    exit 1
fi
echo "reproduce: the same bytes"
