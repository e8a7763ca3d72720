#!/bin/sh
# environment.sh VENV PYTHON [EXTRA]: make the virtual environment, or bring it up to date, with this project in it.
# Needs Python and its venv module, and nothing else: no compiler, no root.
set -eu
venv=$1 python=$2 extra=${3-}

say() { printf '%s\n' "$*" >&2; }

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    say "lguest-nb needs Python 3.11 or newer as '$python', and found $("$python" --version 2>&1 || true)." \
        "Name another one: make PYTHON=/path/to/python3."
    exit 2
fi
if [ ! -x "$venv/bin/pip" ]; then
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        say "'$python' cannot make virtual environments; Debian keeps that part in a package of its own: apt-get install python3-venv"
        exit 2
    fi
    rm -rf "$venv"
    printf 'Making a Python environment in %s ... ' "$venv" >&2
    "$python" -m venv "$venv"
    say done.
fi
case $extra in
dev) with=' with what its tests need' ;;
bench) with=' with what draws its plots' ;;
docs) with=' with what its site is made with' ;;
notebooks) with=' with JupyterLab and what its notebooks import' ;;
class) with=' with a JupyterHub and what its notebooks import' ;;
*) with= ;;
esac
if ! "$venv/bin/python" tools/pip_install.py "Installing lguest-nb$with into $venv" --editable ".${extra:+[$extra]}"; then
    say "pip could not install lguest-nb; what it said is above. The first time it needs a package index within reach."
    exit 2
fi
