#!/bin/sh
# Generated code runs in bubblewrap. Install it through apt where it is missing and we may.
set -eu
if command -v bwrap >/dev/null 2>&1; then exit 0; fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -qq && apt-get install -y -qq bubblewrap >/dev/null && exit 0
fi
echo "bubblewrap (bwrap) is missing: the sandbox needs it. Install it, e.g. 'sudo apt-get install bubblewrap'." >&2
exit 1
