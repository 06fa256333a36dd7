#!/bin/sh
# enter.sh ROOT DIRECTORY COMMAND...
# Run a command in a directory of a root file system. Has to be started in a mount and a PID namespace
# of its own, so that mounts and daemons end with the command.
set -eu
root=$1
directory=$2
shift 2

# A mount point that becomes the root, rather than a chroot: the kernel lets nobody make a user
# namespace in a chroot, and Apptainer needs one.
mount --bind "$root" "$root"
cd "$root"
mount --rbind /dev dev
mount --rbind /sys sys
mount -t proc proc proc
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
# For all users, as udev makes it: unprivileged containers mount with it.
if [ -e dev/fuse ]; then
    mknod -m 666 run/fuse c 10 229
    mount --bind run/fuse dev/fuse
fi
pivot_root . mnt
cd "$directory"
umount --lazy /mnt

# Not exec: the shell is process 1 here, which has to reap what daemons leave behind.
status=0
"$@" || status=$?
exit "$status"
