#!/bin/sh
# read-image.sh IMAGE NAME
# Print one file of a SIF or squashfs image to stdout, as any user who may read the image.
# Exits non-zero where the image is cut short or has no such file.
set -eu
image=$1
name=$2

number() { # offset, bytes: a little-endian unsigned integer of the image
    od -A n -t "u$2" -j "$1" -N "$2" --endian=little "$image" | tr -d ' '
}

offset=0
if [ "$(od -A n -c -j 32 -N 9 "$image" | tr -d ' ')" = SIF_MAGIC ]; then
    total=$(number 88 8)
    at=$(number 96 8)
    while [ "$total" -gt 0 ] && [ "$offset" -eq 0 ]; do
        # 0x4004 is a partition; these images have one, the root file system.
        if [ "$(number "$at" 4)" -eq 16388 ]; then
            offset=$(number "$((at + 17))" 8)
        fi
        at=$((at + 585))
        total=$((total - 1))
    done
fi
# unsquashfs reports a missing file on stderr alone.
said=$(unsquashfs -o "$offset" -l "$image" "$name" 2>&1) || {
    echo "$image: $said" >&2
    exit 1
}
case "$said" in
    *"squashfs-root/$name"*) exec unsquashfs -o "$offset" -cat "$image" "$name" ;;
esac
echo "$image: no file $name" >&2
exit 1
