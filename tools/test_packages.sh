#!/bin/sh
# test_packages.sh: the Debian packages that only the tests need. Root gets what is missing; anyone else is told.
set -eu

missing=
need() { # need PACKAGE COMMAND...: the package is missing if the command fails
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
export PATH="$PATH:/usr/sbin:/sbin"

need python3-venv "${PYTHON:-python3}" -c 'import ensurepip, venv'
need gcc gcc --version
need binutils ld --version
need libc6-dev test -e /usr/include/stdio.h
need strace strace -V
need qemu-utils qemu-img --version
need qemu-system-common qemu-storage-daemon --version
need iproute2 ip -V
need iputils-ping ping -V
need gdb gdb --version
need lz4 lz4 --version
need zstd zstd --version
need xz-utils xz --version
need bzip2 which bzip2
need cpio cpio --version
need chromium chromium --version
need acpica-tools iasl -v

[ -n "$missing" ] || exit 0
install="apt-get install$missing"
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "The tests need these Debian packages, which are not installed and which only root can add: $install" >&2
    exit 2
fi
echo "Installing what the tests need:$missing" >&2
export DEBIAN_FRONTEND=noninteractive
get() { apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $missing </dev/null; }
# The machine's package lists may be missing or old, and a mirror may be in the middle of an update: only the install counts.
if ! get >/dev/null 2>&1 && ! { apt-get -qq update || true; get; } >&2; then
    echo "apt-get could not install what the tests need; what it said is above, and by hand it is: $install" >&2
    exit 2
fi
