#!/bin/sh
# Sees that off-screen OpenGL is there: EGL or OSMesa. With root it installs what is missing, else it says what to type.
set -eu
packages="libegl1 libgl1 libgl1-mesa-dri libosmesa6"
have() { ldconfig -p 2>/dev/null | grep -q "$1" || PATH="$PATH:/sbin:/usr/sbin" ldconfig -p | grep -q "$1"; }
# libEGL.so.1 alone is only a dispatcher: a vendor's library must stand behind it.
if have 'libEGL_mesa\.so' || have 'libEGL_nvidia\.so' || have 'libOSMesa\.so'; then
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "error: no off-screen OpenGL (EGL or OSMesa) found: install Mesa's EGL with your package manager" >&2
    exit 1
fi
if [ "$(id -u)" -eq 0 ]; then
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages
else
    echo "error: no off-screen OpenGL found; type: sudo apt-get install -y $packages" >&2
    exit 1
fi
