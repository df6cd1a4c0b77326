#!/usr/bin/env bash
# Cloud TPU VMs, from nothing to a finished run. Needs gcloud; every command it gives is shown by --dry-run.
#
#   tpu_vm.sh create NAME --type TYPE [--spot] [--slices N] [--version V] [--create-flag FLAG]...
#   tpu_vm.sh setup  NAME [--git URL [--ref REF]] [--venv DIR] [--bucket BUCKET]
#   tpu_vm.sh run    NAME [--env NAME=VALUE]... [--] SCRIPT [ARGUMENTS ...]
#   tpu_vm.sh logs   NAME [--worker all]
#   tpu_vm.sh status NAME
#   tpu_vm.sh stop   NAME [--grace SECONDS]
#   tpu_vm.sh delete NAME
#   tpu_vm.sh up     NAME (all of these) [--] SCRIPT train --resume [ARGUMENTS ...]
#
# create  makes a TPU VM and waits until it is there; with --spot or --slices as a queued resource of that name
# setup   brings this checkout's tracked files to ~/accelnet on every worker, and installs accelnet there
# run     starts a Python script on every worker, detached: it goes on when this machine is gone
# logs    shows the log of a worker (default 0, --worker N or all) until the run or the connection ends
# stop    SIGTERM on every worker, at which accelnet saves; SIGKILL for what has not ended after --grace (default 120)
# up      create, setup, run and logs; when the VM was preempted or a process was lost, all of it again, until the run
#         has ended. Its exit code is the run's. Interrupting it leaves the VM and the run as they are
#
#   --zone Z, --project P    otherwise those that gcloud is configured with
#   --type TYPE              such as v5litepod-16, v6e-8, v4-32: `gcloud compute tpus accelerator-types list` has all;
#                            not tpu7x and later, which are Compute Engine's and GKE's
#   --version V              of the VM's software; otherwise the plain one for the type
#   --spot                   may be preempted at any time
#   --slices N               so many VMs of the type, over the data centre's network
#   --create-flag=FLAG       one more for gcloud's create, such as --create-flag=--service-account=ADDRESS
#   --git URL, --ref REF     code from there instead (default ref HEAD)
#   --venv DIR               an environment that the workers have already: nothing is installed
#   --bucket BUCKET          of Cloud Storage, mounted as runs/: all workers must see what --workdir names
#   --env NAME=VALUE         for the run
#   --poll SECONDS           between two looks at the state (default 30)
#   --dry-run                print every command, ready to be pasted, and run none
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
max_restarts=20  # of a run whose VM stayed: what hangs each time should not do so for ever
zone="" project="" type="" version="" git_url="" ref=HEAD venv="" bucket=""
slices=1 worker=0 grace=120 poll=30 spot=no dry_run=no
create_flags=() variables=() command=() nodes=() queued=no gcloud_flags=(--quiet) follower=""
source "$root/scripts/tpu_gcloud.sh"

unpack='mkdir -p accelnet && find accelnet -mindepth 1 -maxdepth 1 ! -name runs ! -name ".venv*" -exec rm -rf {} +'
unpack+=' && tar -xzf accelnet.tar.gz -C accelnet'

setup_node() {
    local code
    if [ -n "$git_url" ]; then
        code="git init --quiet accelnet && git -C accelnet fetch --quiet --depth 1 $(quoted "$git_url" "$ref")"
        code+=' && git -C accelnet checkout --quiet --force FETCH_HEAD'
    else
        tpus tpu-vm scp "$scratch/accelnet.tar.gz" "$1:accelnet.tar.gz" --worker=all || return
        code=$unpack
    fi
    shell_on "$1" all "$code && $(quoted bash accelnet/scripts/tpu_worker.sh setup "$venv" "$bucket")"
}

# Packs what git tracks, as it is now, committed or not.
pack() {
    local commit=HEAD changed new
    if [ "$dry_run" = no ]; then
        git -C "$root" rev-parse HEAD > /dev/null 2>&1 \
            || fail "$root is no git checkout with a commit: give the code's address with --git URL"
        new=$(git -C "$root" ls-files --others --exclude-standard)
        if [ -n "$new" ]; then say "Stays here, since git does not track it (git add): ${new//$'\n'/, }"; fi
        changed=$(git -C "$root" -c user.name=accelnet -c user.email=accelnet@localhost stash create)
        commit=${changed:-HEAD}
    else
        say "HEAD stands for what git tracks, as it is now"
    fi
    act git -C "$root" archive --format=tar.gz "--output=$scratch/accelnet.tar.gz" "$commit"
}

setup() {
    if [ -z "$git_url" ]; then pack || return; fi
    on_nodes setup_node
}

# A secret of this start, by which its processes know each other. In a file, since all users see a command's arguments.
make_token() {
    # shellcheck disable=SC2016
    act bash -c 'umask 077 && rm -f "$0" && head -c 16 /dev/urandom | od -An -vtx1 | tr -d " \n" > "$0"' "$scratch/accelnet-token"
}

start_node() {
    local line
    tpus tpu-vm scp "$scratch/accelnet-token" "$1:accelnet-token" --worker=all || return
    line=$(quoted env ${variables[@]+"${variables[@]}"} bash accelnet/scripts/tpu_worker.sh start "${command[@]}")
    shell_on "$1" all "$line"
}

run() {
    make_token
    on_nodes start_node
}

# The name is the worker's own to fill in.
# shellcheck disable=SC2016
follow_node() { shell_on "$1" all 'bash accelnet/scripts/tpu_worker.sh follow "$(hostname)"'; }

logs() {
    [ "${#nodes[@]}" -gt 0 ] || find_nodes
    if [ "$worker" = all ]; then on_nodes follow_node; else work_on "${nodes[0]}" "$worker" follow; fi
}

status() {
    local state=ready
    if [ "$dry_run" = no ]; then
        state=$(vm_state)
        echo "$name: $state"
    fi
    if [ "$state" = ready ]; then on_nodes work_on all status; fi
}

stop() { on_nodes work_on all stop "$grace"; }

end_follower() {
    if [ -z "$follower" ]; then return; fi
    kill -- "-$follower" 2> /dev/null || true
    wait "$follower" 2> /dev/null || true
    follower=""
}

# Shows the log until the run has ended, and returns its exit code; 100 if run or VM are lost.
watch_run() {
    local seen code=""
    if [ "$dry_run" = yes ]; then logs; return; fi
    while [ -z "$code" ]; do
        if [ -z "$follower" ] || ! kill -0 "$follower" 2> /dev/null; then
            set -m  # gives it a process group, which ends with all that gcloud started
            logs < /dev/null &
            follower=$!
            set +m
        fi
        sleep "$poll"
        seen=$(work_on "${nodes[0]}" 0 status 2> /dev/null < /dev/null | tail -n 1) || seen=unreachable
        case $seen in
            "exited "*) code=${seen#exited } code=${code%% *} ;;
            lost* | idle*) code=100 ;;
            running*) ;;
            *) if [ "$(vm_state)" = gone ]; then code=100; fi ;;
        esac
    done
    sleep 2  # for the last lines
    end_follower
    return "$code"
}

ensure_vm() {
    local state
    if [ "$dry_run" = yes ]; then create; find_nodes; return; fi
    state=$(vm_state) || exit 1
    if [ "$state" = gone ]; then
        find_nodes
        # What a preemption leaves has the name.
        if [ "$queued" = yes ] || [ "$(describe tpu-vm "$name" state)" != missing ]; then delete; fi
        create
    else
        await_vm
    fi
    find_nodes
}

# A process that hangs would keep the chips.
clear_workers() { if [ "$dry_run" = yes ]; then stop; else stop > /dev/null; fi }

up() {
    local code restarts=0
    while :; do
        ensure_vm
        code=0
        { setup && clear_workers && run && watch_run; } || code=$?
        if [ "$dry_run" = yes ]; then return; fi
        case $code in
            0 | 2 | 3 | 130) return "$code" ;;
            4) sleep "$poll" ;;  # who sent SIGTERM may be about to take the machine
        esac
        if [ "$(vm_state)" = gone ]; then say "$name was taken away: once more from the start"; continue; fi
        case $code in
            4 | 5 | 100 | 137) ;;
            *) return "$code" ;;
        esac
        restarts=$((restarts + 1))
        if [ "$restarts" -gt "$max_restarts" ]; then fail "the run was started $restarts times on $name" "$code"; fi
        say "The run ended with exit code $code: starting it again"
    done
}

usage() { sed -n '2,/^set -euo/{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"; }

whole() { case $2 in "" | *[!0-9]*) fail "$1 is '$2', expected a whole number" ;; esac }

parse() {
    local option value
    while [ $# -gt 0 ]; do
        option=$1
        case $option in
            --spot) spot=yes; shift; continue ;;
            --dry-run) dry_run=yes; shift; continue ;;
            --) shift; break ;;
            --*=*) value=${option#*=} option=${option%%=*}; shift ;;
            -*) [ $# -gt 1 ] || fail "$option needs a value"; value=$2; shift 2 ;;
            *) break ;;
        esac
        case $option in
            --zone) zone=$value ;;
            --project) project=$value ;;
            --type) type=$value ;;
            --version) version=$value ;;
            --slices) whole "$option" "$value"; slices=$value ;;
            --create-flag) create_flags+=("$value") ;;
            --git) git_url=$value ;;
            --ref) ref=$value ;;
            --venv) venv=$value ;;
            --bucket) bucket=${value#gs://} ;;
            --env) variables+=("$value") ;;
            --worker) worker=$value ;;
            --grace) whole "$option" "$value"; grace=$value ;;
            --poll) whole "$option" "$value"; poll=$value ;;
            *) fail "$option is no option of tpu_vm.sh: tpu_vm.sh --help has all" ;;
        esac
    done
    command=("$@")
}

check() {
    local variable argument resumes=no
    for variable in ${variables[@]+"${variables[@]}"}; do
        [[ $variable =~ ^[A-Za-z_][A-Za-z_0-9]*= ]] || fail "--env is '$variable', expected NAME=VALUE"
    done
    case $verb in
        run | up) [ "${#command[@]}" -gt 0 ] || fail "$verb needs a script: tpu_vm.sh $verb $name SCRIPT [ARGUMENTS ...]" ;;
        *) [ "${#command[@]}" -eq 0 ] || fail "$verb takes no '${command[0]}': tpu_vm.sh --help says what it takes" ;;
    esac
    case $verb in create | up) [ -n "$type" ] || fail "$verb needs --type, such as --type v5litepod-16" ;; esac
    if [ -n "$type" ]; then refuse_newer_types; fi
    for argument in ${command[@]+"${command[@]}"}; do if [ "$argument" = --resume ]; then resumes=yes; fi; done
    if [ "$verb" = up ] && [ "$resumes" = no ]; then
        fail "up starts the command again after a preemption: it needs --resume, and a --workdir that outlives the VM"
    fi
    if [ "$dry_run" = no ] && ! command -v gcloud > /dev/null; then
        fail "gcloud was not found: install the Google Cloud CLI, then \`gcloud auth login\`"
    fi
}

verb=${1:-} name=${2:-}
case $verb in
    create | setup | run | logs | status | stop | delete | up) ;;
    -h | --help) usage; exit ;;
    *) fail "the verb is '$verb', expected create, setup, run, logs, status, stop, delete or up: tpu_vm.sh --help" ;;
esac
case $name in "" | -*) fail "$verb needs the TPU VM's name: tpu_vm.sh $verb NAME ..." ;; esac
shift 2
parse "$@"
check
if [ -n "$zone" ]; then gcloud_flags+=("--zone=$zone"); fi
if [ -n "$project" ]; then gcloud_flags+=("--project=$project"); fi
scratch=${TMPDIR:-/tmp}
if [ "$dry_run" = no ]; then
    scratch=$(mktemp -d)
    trap 'end_follower; rm -rf "$scratch"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
fi
"$verb"
