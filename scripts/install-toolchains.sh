#!/bin/sh
# The sandbox's tests execute each language whose tool chain is here. Install what is missing, through apt and npm, where
# we may. What can't be had is named in one line and is no error.
set -u
TYPESCRIPT=typescript@5.9.3
NODE_TYPES=@types/node@20.19.25 # for type checks
# Where the sandbox looks: what is in someone's home folder, as rustup's, it does not show to programs.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH DEBIAN_FRONTEND=noninteractive

has() {
    for tool in "$@"; do command -v "$tool" >/dev/null 2>&1 || return 1; done
}

has_typescript() {
    has tsc && [ -d "$(dirname "$(readlink -f "$(command -v tsc)")")/../../@types/node" ]
}

# get 'TOOL...' PACKAGE...: unless the tools are there, the packages.
lists_are_new=false
get() {
    # shellcheck disable=SC2086 # words
    if has $1; then return; fi
    shift
    if ! $lists_are_new; then
        echo "installing tool chains for the sandbox's tests (a minute or two, once)"
        apt-get update -qq >/dev/null 2>&1
        lists_are_new=true
    fi
    apt-get install -y -qq --no-install-recommends --no-remove "$@" >/dev/null 2>&1
}

if [ "$(id -u)" = 0 ]; then
    if has apt-get; then
        get 'node npm' nodejs npm
        get 'java javac' default-jdk-headless
        get g++ g++
        # Of a Debian release whose Rust is years old, rustc-web is the one that browsers are built with.
        get rustc rustc-web
        get rustc rustc
        get php php-cli
        get 'mcs mono' mono-mcs mono-runtime
    fi
    if has npm && ! has_typescript; then
        npm install --global --silent --fetch-retries=1 "$TYPESCRIPT" "$NODE_TYPES" >/dev/null 2>&1
    fi
fi

untested=
has node || untested="$untested javascript"
has_typescript || untested="$untested typescript"
has java javac || untested="$untested java"
has g++ || untested="$untested cpp"
has rustc || untested="$untested rust"
has php || untested="$untested php"
has mcs mono || untested="$untested csharp"
has swiftc || untested="$untested swift"
[ -z "$untested" ] || echo "the sandbox's tests leave out, for want of a tool chain:$untested"
