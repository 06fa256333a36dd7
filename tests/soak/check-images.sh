#!/bin/sh
# check-images.sh DIRECTORY SECONDS NAME...
# A job's look around on its node: print which shared images it sees and whatever it should not be
# able to read or change; some seconds later, what is in the images that it asked for by these
# names. DIRECTORY is the site's; its file "private" lists uid and file name of images that a user
# might guess at.
set -u
site=$1
seconds=$2
shift 2
node=$SLURMD_NODENAME
cache=$site/$node/cache
state=$site/$node/state
uid=$(id -u)

for file in "$cache"/images/*; do
    if cat "$file" >/dev/null 2>&1; then
        echo "shared $node ${file##*/}"
    elif [ -e "$file" ]; then
        echo "violation: $file is not for all to read"
    fi
done

while read -r owner file; do
    if [ "$owner" != "$uid" ] && cat "$cache/users/$owner/$file" >/dev/null 2>&1; then
        echo "violation: user $uid reads $cache/users/$owner/$file"
    fi
done <"$site/private"

# What disappears meanwhile, and what may not be entered, is told on stderr.
find "$cache" "$state" "$cache/users/$uid" -writable 2>/dev/null |
    sed "s/^/violation: user $uid can change /"
find "$cache/blobs" "$cache/users" "$cache/tmp" "$cache/work" "$state/jobs" "$state/hot" \
    -type f ! -user "$uid" -readable 2>/dev/null | sed "s/^/violation: user $uid reads /"

# They are its own to the end, whatever others need room for.
sleep "$seconds"
for name in "$@"; do
    image=$(eval "echo \"\${HPCIMG_IMAGE_$name-none}\"")
    said=$("$site/read-image.sh" "$image" hello 2>&1) || said="unreadable: $said"
    echo "image $node $name $said"
done
