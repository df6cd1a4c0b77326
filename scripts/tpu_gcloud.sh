# shellcheck shell=bash
# Sourced by tpu_vm.sh, never run: what gcloud is told and asked about TPU VMs.
#
# The caller sets $name, $dry_run, $gcloud_flags and $scratch, a folder for files, and what its options say.
# With $dry_run, commands are printed, ready to be pasted.

# The variables are the caller's.
# shellcheck disable=SC2154
say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $1"; exit "${2:-2}"; }

quoted() {
    local line
    printf -v line '%q ' "$@"
    printf '%s' "${line% }"
}

act() {
    if [ "$dry_run" = yes ]; then
        quoted "$@"
        echo
    else
        "$@"
    fi
}

tpus() { act gcloud compute tpus "$@" "${gcloud_flags[@]}"; }

# describe KIND NAME FIELD: prints the field, `missing` if there is no such thing; fails if gcloud cannot tell.
describe() {
    if gcloud compute tpus "$1" describe "$2" "--format=value($3)" "${gcloud_flags[@]}" 2> "$scratch/errors"; then
        return
    elif grep --quiet NOT_FOUND "$scratch/errors"; then
        echo missing
    else
        cat "$scratch/errors" >&2
        return 1
    fi
}

# From TPU7x on, the Cloud TPU API that this talks to has no new hardware: Compute Engine and GKE have it.
refuse_newer_types() {
    case $type in
        tpu[0-9]* | v[7-9]* | v[1-9][0-9]* | ironwood* | [7-9]x*)
            fail "--type is $type, which the Cloud TPU API does not have: from TPU7x on, TPUs are made by GKE or Compute \
Engine. Take GKE with scripts/jobset.yaml, or make instances of Compute Engine and run the script on each" ;;
    esac
}

# Sets $queued, and $nodes, the TPU VMs under this name: one per slice, NAME-0, NAME-1, ... if there are several.
find_nodes() {
    local found=""
    queued=no
    if [ "$spot" = yes ] || [ "$slices" -gt 1 ]; then queued=yes; fi
    if [ "$dry_run" = no ]; then
        found=$(describe queued-resources "$name" 'tpu.nodeSpec[].nodeId') || exit 1
        if [ "$found" = missing ]; then queued=no found=$name; else queued=yes; fi
    fi
    if [ -n "$found" ]; then
        IFS=';' read -r -a nodes <<< "$found"
    elif [ "$slices" -gt 1 ]; then
        nodes=("$name-0")
        while [ "${#nodes[@]}" -lt "$slices" ]; do nodes+=("$name-${#nodes[@]}"); done
    else
        nodes=("$name")
    fi
}

# Prints `ready`, `gone` (preempted, or never there), `failed STATE` or `waiting STATE`.
vm_state() {
    local state node
    find_nodes
    if [ "$queued" = yes ]; then
        state=$(describe queued-resources "$name" state.state) || return
        case $state in
            ACTIVE) ;;
            SUSPENDED | SUSPENDING | missing) echo gone; return ;;
            FAILED) echo "failed $state"; return ;;
            *) echo "waiting $state"; return ;;
        esac
    fi
    for node in "${nodes[@]}"; do
        state=$(describe tpu-vm "$node" state) || return
        case $state in
            READY) ;;
            PREEMPTED | TERMINATED | missing) echo gone; return ;;
            STOPPED | STOPPING | HIDDEN | HIDING) echo "failed $state"; return ;;
            *) echo "waiting $state"; return ;;
        esac
    done
    echo ready
}

create() {
    local flags=("--accelerator-type=$type")
    if [ -z "$version" ]; then
        case $type in
            v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
            v5litepod-*) version=v2-alpha-tpuv5-lite ;;
            v5p-*) version=v2-alpha-tpuv5 ;;
            v6e-*) version=v2-alpha-tpuv6e ;;
            *) fail "no software version is known for --type $type: give one with --version" ;;
        esac
    fi
    if [ "$spot" = yes ]; then flags+=(--spot); fi
    flags+=(${create_flags[@]+"${create_flags[@]}"})
    if [ "$slices" -gt 1 ]; then
        tpus queued-resources create "$name" "--node-count=$slices" "--runtime-version=$version" "${flags[@]}"
    elif [ "$spot" = yes ]; then
        tpus queued-resources create "$name" "--node-id=$name" "--runtime-version=$version" "${flags[@]}"
    else
        tpus tpu-vm create "$name" "--version=$version" "${flags[@]}"
    fi
    await_vm
}

await_vm() {
    local state said=""
    if [ "$dry_run" = yes ]; then return; fi
    while :; do
        state=$(vm_state) || state="waiting (gcloud could not tell)"
        case $state in
            ready) return ;;
            failed*) fail "$name is in the state ${state#failed }: gcloud has the reason, delete removes it" 1 ;;
            gone) fail "$name is gone before it was ready: create it again" 1 ;;
        esac
        if [ "$state" != "$said" ]; then say "$name: $state"; said=$state; fi
        sleep "$poll"
    done
}

delete() {
    find_nodes
    if [ "$queued" = yes ]; then
        tpus queued-resources delete "$name" --force
    else
        tpus tpu-vm delete "$name"
    fi
}

# on_nodes FUNCTION ARGUMENTS...: FUNCTION NODE ARGUMENTS... for every node at once; fails if one fails.
on_nodes() {
    local function=$1 node pid pids=() code=0
    shift
    [ "${#nodes[@]}" -gt 0 ] || find_nodes
    for node in "${nodes[@]}"; do
        if [ "$dry_run" = yes ]; then
            "$function" "$node" "$@"
        else
            "$function" "$node" "$@" < /dev/null &
            pids+=($!)
        fi
    done
    for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid" || code=$?; done
    return "$code"
}

# Has workers of a node run a command line of their shell.
shell_on() { tpus tpu-vm ssh "$1" "--worker=$2" "--command=$3"; }

# Has workers of a node carry out a verb of tpu_worker.sh.
work_on() { shell_on "$1" "$2" "$(quoted bash accelnet/scripts/tpu_worker.sh "${@:3}")"; }
