#!/bin/sh
# Generated code runs in bubblewrap under a filter made by libseccomp. Install what is missing through apt if we may.
set -eu
missing=
command -v bwrap >/dev/null 2>&1 || missing="bubblewrap"
PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep -q 'libseccomp\.so\.2' || missing="$missing libseccomp2"
if [ -z "$missing" ]; then exit 0; fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    # shellcheck disable=SC2086 (a list)
    apt-get update -qq && apt-get install -y -qq $missing >/dev/null && exit 0
fi
echo "missing for the sandbox:" $missing "- install it, e.g. 'sudo apt-get install" $missing"'." >&2
exit 1
