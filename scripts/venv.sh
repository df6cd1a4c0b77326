# shellcheck shell=bash
# Sourced by the other scripts, never run: gives $root, and make_venv, which makes the environment or reuses it.
#
#   VENV    the environment's directory, relative to the repository (default .venv)
#   PYTHON  the interpreter to build it from (default: python3, else the newest python3.x that is new enough)
#
# $VENV/accelnet.stamp says what was installed. The environment is reused as it is while that still holds,
# gets a pip install when pyproject.toml changed or an extra is missing, and is rebuilt when PYTHON names
# another interpreter or the repository was moved.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${VENV:-.venv}
case $venv in /*) ;; *) venv=$root/$venv ;; esac

say() { printf '%s\n' "$*" >&2; }

# Prints the interpreter's own path, its version and its prefix; fails where it is older than 3.11.
describe_python() {
    "$1" -c 'import sys
print(getattr(sys, "_base_executable", None) or sys.executable)
print(".".join(map(str, sys.version_info[:3])), sys.base_prefix)
sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Sets $interpreter and $identity.
choose_python() {
    local candidate description candidates=(python3 python3.14 python3.13 python3.12 python3.11)
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if description=$(describe_python "$candidate"); then
            interpreter=${description%%$'\n'*}
            identity=${description#*$'\n'}
            return
        fi
    done
    if [ -n "${PYTHON:-}" ]; then
        say "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1 | head -n 1 || true): expected Python 3.11 or newer."
    else
        say "Found no Python 3.11 or newer (python3 is $(python3 --version 2>&1 || true))."
        say "Install one, or name one: PYTHON=/path/to/python3.12 bash $0"
    fi
    exit 2
}

# Shows pip's output as one line that is renewed (in a log: as a line every 2 seconds).
show_progress() {
    if [ "${BASH_VERSINFO[0]}" -lt 4 ]; then cat >&2; return; fi  # there, read does not tell a time-out from the end
    local line last="" start=$SECONDS shown=$SECONDS status total=0 packages
    while :; do
        if IFS= read -r -t 1 line; then
            case $line in *WARNING:*) ;; *) last=$line ;; esac
        else
            status=$?
            [ "$status" -gt 128 ] || break  # more than 128: a time-out, so that time is seen to pass
        fi
        if [[ $line == "Installing collected packages: "* ]]; then
            total=${line//[^,]/}
            total=$((${#total} + 1))
        fi
        if [ "$total" -gt 20 ] && [[ $last == Installing* ]]; then
            # pip itself is silent for minutes here.
            packages=("$venv"/lib/python*/site-packages/*.dist-info)
            last="Installing packages: ${#packages[@]} of $((total + 1))"
        fi
        if [ -t 2 ]; then
            printf '\r\033[K%4d s  %s' $((SECONDS - start)) "${last:0:${COLUMNS:-80}-10}" >&2
        elif [ $((SECONDS - shown)) -ge 2 ]; then
            shown=$SECONDS
            printf '%4d s  %s\n' $((SECONDS - start)) "${last:0:100}" >&2
        fi
    done
    if [ -t 2 ]; then printf '\r\033[K' >&2; fi
}

# make_venv [EXTRA...]: afterwards $venv/bin/python has accelnet (editable) with these extras.
make_venv() {
    local stamp=$venv/accelnet.stamp old_root="" old_identity="" old_hash="" old_extras="" hash extra extras
    local rebuild=yes install=no
    # Of what decides the installation: the settings of tools come after it.
    hash=$(sed '/^\[tool\./,$d' "$root/pyproject.toml" | cksum)
    if [ -f "$stamp" ] && "$venv/bin/python" -c "" 2>/dev/null; then
        { read -r old_root; read -r old_identity; read -r old_hash; read -r old_extras; } < "$stamp" || true
        if [ -n "${PYTHON:-}" ]; then choose_python; else identity=$old_identity; fi
        if [ "$old_root" = "$root" ] && [ "$old_identity" = "$identity" ]; then rebuild=no; fi
    fi
    extras=$old_extras
    [ "$rebuild" = no ] || extras=""
    for extra in "$@"; do
        case " $extras " in *" $extra "*) ;; *) extras="${extras:+$extras }$extra"; install=yes ;; esac
    done
    [ "$old_hash" = "$hash" ] || install=yes
    if [ "$rebuild" = no ] && [ "$install" = no ]; then return; fi

    if [ "$rebuild" = yes ]; then
        choose_python
        say "Making $venv with $interpreter (Python ${identity%% /*})"
        if ! "$interpreter" -m venv --clear "$venv" >&2; then
            say "$interpreter cannot make an environment. Debian and Ubuntu keep what is missing in the package"
            say "python3-venv; or name another interpreter: PYTHON=/path/to/python3.12 bash $0"
            exit 2
        fi
    fi
    rm -f "$stamp"
    say "Installing accelnet${extras:+[${extras// /,}]} into $venv (minutes the first time)"
    # shellcheck disable=SC2086
    if ! "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
        -e "$root${extras:+[${extras// /,}]}" 2>&1 | tee "$venv/install.log" | show_progress; then
        tail -n 20 "$venv/install.log" >&2
        say "The installation failed; all of pip's output: $venv/install.log"
        exit 1
    fi
    printf '%s\n' "$root" "$identity" "$hash" "$extras" > "$stamp"
}
