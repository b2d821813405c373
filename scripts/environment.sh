# Sourced by the commands of this folder: finds the checkout and makes its .venv when it is missing or stale.
# Leaves `root` set. Nothing is started when the environment is current, so that a second call adds a few ms.

root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")

# .venv/made-from is written last and says what the environment was made from, its place included: the scripts in
# .venv/bin hold absolute paths, so that a checkout which moved needs a new one. Python is a link to one exact
# interpreter, so that it dangles when that is gone.
environment_is_current() {
    [[ -x "$root/.venv/bin/python" ]] &&
        { printf '%s\n' "$root" && cat "$root/requirements.txt" "$root/pyproject.toml"; } |
        cmp -s - "$root/.venv/made-from"
}

# The first Python from 3.11 on that can make an environment; the releases that the tests run on come first.
find_python() {
    local name modules="sys"
    command -v uv >/dev/null || modules="sys, venv, ensurepip"
    for name in python3.13 python3.12 python3.11 python3 python; do
        if "$name" -I -c "import $modules; sys.exit(sys.version_info < (3, 11))" >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
    return 1
}

explain_missing_python() {
    local name found
    echo "error: Frostline needs Python 3.11 or later with its venv module, and PATH has none." >&2
    for name in python3.13 python3.12 python3.11 python3 python; do
        if found=$("$name" -I -c 'import sys; print(sys.version.split()[0], "at", sys.executable)' 2>/dev/null); then
            echo "  $name is $found$("$name" -I -c 'import ensurepip' 2>/dev/null || echo ', without venv')" >&2
        fi
    done
    echo "  Install Python 3.11 or later (on Debian and Ubuntu: python3 and python3-venv) and put it on PATH." >&2
}

if ! environment_is_current; then
    if ! python=$(find_python); then
        explain_missing_python
        exit 1
    fi
    "$python" -I "$root/scripts/setup_environment.py" || exit
fi
