#!/usr/bin/env bash
# What tpu_vm.sh has every worker of a TPU VM do:  bash accelnet/scripts/tpu_worker.sh VERB [ARGUMENTS]
#
#   setup VENV BUCKET   make .venv with the extra `tpu`, or check VENV; mount BUCKET as runs/ (both may be empty)
#   start SCRIPT ...    run a Python script detached, with this copy of accelnet; one run at a time
#   status              print `idle`, `running PID`, `exited CODE`, or `lost` after a restart of the machine; and where
#   follow [PREFIX]     show the last 100 lines of the log, and what comes until the run ends
#   stop SECONDS        SIGTERM, SIGKILL if it has not ended after so many seconds; then print the status
#
# ~/accelnet-run holds the run's log, pid, exit code and lock, and the interpreter that setup chose.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"
run=$HOME/accelnet-run

# TPU VM images come with an older Python.
get_python() {
    say "Found no Python 3.11 or newer on $(hostname): getting one with uv"
    python3 -m pip install --quiet --user uv
    python3 -m uv python install --quiet 3.12
    PYTHON=$(python3 -m uv python find --no-project 3.12)
}

install_gcsfuse() {
    local key=/usr/share/keyrings/cloud.google.asc source=https://packages.cloud.google.com/apt
    curl --fail --silent --show-error "$source/doc/apt-key.gpg" | sudo tee "$key" > /dev/null
    echo "deb [signed-by=$key] $source gcsfuse-$(lsb_release --codename --short) main" \
        | sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
    # A new machine installs updates in the background.
    sudo apt-get -o DPkg::Lock::Timeout=600 update --quiet=2
    sudo apt-get -o DPkg::Lock::Timeout=600 install --quiet=2 --yes gcsfuse
}

mount_bucket() {
    if mountpoint --quiet "$root/runs"; then return; fi
    command -v gcsfuse > /dev/null || install_gcsfuse
    mkdir -p "$root/runs"
    # A checkpoint is written beside its place and renamed.
    gcsfuse --implicit-dirs --rename-dir-limit=100000 "$1" "$root/runs"
}

setup() {
    mkdir -p "$run"
    if [ -n "$1" ]; then
        venv=$1
        case $venv in /*) ;; *) venv=$HOME/$venv ;; esac
        if ! "$venv/bin/python" -c 'import importlib.util as imports, sys
sys.exit(not all(map(imports.find_spec, ("flax", "jax", "optax"))))'; then
            say "$venv on $(hostname) is no environment with flax, jax and optax: leave out --venv to have one made"
            exit 2
        fi
    else
        if ! (choose_python) 2> /dev/null; then get_python; fi
        make_venv tpu
    fi
    printf '%s\n' "$venv/bin/python" > "$run/python"
    if [ -n "$2" ]; then mount_bucket "$2"; fi
}

start() {
    if [ ! -f "$run/python" ]; then say "$(hostname) is not set up: tpu_vm.sh setup does it"; exit 2; fi
    exec 9> "$run/lock"
    if ! flock --nonblock 9; then say "A run goes on on $(hostname): tpu_vm.sh stop ends it"; exit 2; fi
    if [ -f "$HOME/accelnet-token" ]; then
        ACCELNET_TOKEN=${ACCELNET_TOKEN:-$(cat "$HOME/accelnet-token")}
        export ACCELNET_TOKEN
        rm -f "$HOME/accelnet-token"
    fi
    rm -f "$run/exit" "$run/pid"
    if [ -f "$run/log" ]; then mv "$run/log" "$run/log.old"; fi
    # The run holds the lock as long as one of its processes lives.
    setsid nohup bash "${BASH_SOURCE[0]}" supervise "$@" < /dev/null > "$run/log" 2>&1 &
    local tries=0
    until [ -s "$run/pid" ]; do
        tries=$((tries + 1))
        if [ "$tries" -gt 100 ]; then say "Nothing started on $(hostname): $(cat "$run/log")"; exit 1; fi
        sleep 0.1
    done
    say "Started on $(hostname), process $(cat "$run/pid")"
}

# The shell of a run, which records how it ended.
supervise() {
    local code=0
    trap : HUP INT TERM  # a machine that goes down signals all: the exit code is still to be written
    cd -- "$root"
    export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
    # shellcheck disable=SC2016
    bash -c 'echo $$ > "$0" && exec "$@"' "$run/pid" "$(cat "$run/python")" "$@" || code=$?
    echo "$code" > "$run/exit.new"
    mv "$run/exit.new" "$run/exit"
}

status() {
    if [ -s "$run/exit" ]; then
        echo "exited $(cat "$run/exit") on $(hostname)"
    elif [ -f "$run/lock" ] && ! flock --nonblock "$run/lock" true; then
        echo "running $(cat "$run/pid") on $(hostname)"
    elif [ -f "$run/log" ]; then
        echo "lost on $(hostname)"
    else
        echo "idle on $(hostname)"
    fi
}

follow() {
    if [ ! -f "$run/log" ]; then say "Nothing was started on $(hostname)"; exit 2; fi
    tail --lines=100 --follow=name --pid="$(cat "$run/pid")" "$run/log" | sed --unbuffered "s/^/${1:+[$1] }/"
}

is_running() { [[ $(status) == running* ]]; }

stop() {
    local pid left=$(($1 * 5))
    if is_running; then
        pid=$(cat "$run/pid")
        kill -TERM "$pid" || true
        while is_running && [ "$left" -gt 0 ]; do left=$((left - 1)); sleep 0.2; done
        if is_running; then
            say "The run on $(hostname) did not end within $1 s: SIGKILL"
            kill -KILL "$pid" || true
            while is_running; do sleep 0.2; done
        fi
    fi
    status
}

case ${1:-} in
    setup | start | supervise | status | follow | stop) "$@" ;;
    *) say "The verb is '${1:-}', expected setup, start, status, follow or stop: tpu_vm.sh gives it"; exit 2 ;;
esac
