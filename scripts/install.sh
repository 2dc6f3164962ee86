#!/usr/bin/env bash
# Makes what the Makefile's targets need, and returns at once when it is there already:
#   scripts/install.sh [semsam] [dev] [label-studio] [chromium] [postgres]
# semsam: .venv with `.venv/bin/semsam`; dev: the test and lint tools in it; label-studio: .venv-ls; chromium: the browser of the journeys; postgres: the server that the store is tested with.
# A failure is one line on stderr and exit status 1; a virtual environment that could not be finished is removed again.
# Where semsam and Label Studio are both wanted they are installed side by side: pip keeps one core busy at most.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

LABEL_STUDIO_VERSION=1.23.2
LOGS=.semsam/logs
CPU_TORCH=https://download.pytorch.org/whl/cpu   # PyTorch's builds without CUDA

building=""   # the virtual environment under construction, removed unless it gets finished
ticker=""     # process that shows the seconds
beside=""     # process, and its group, that makes Label Studio's environment meanwhile
is_beside=${SEMSAM_INSTALL_BESIDE:-}   # set in that process: it shows no seconds and leaves the last word to the other

clear_line() { [[ ! -t 1 ]] || printf '\r\033[K'; }

die() { printf '%s\n' "$*" >&2; exit 1; }

stop_ticker() { [[ -z $ticker ]] || { kill "$ticker" 2>/dev/null || true; wait "$ticker" 2>/dev/null || true; ticker=""; }; }

clean_up() {
    local status=$?
    stop_ticker
    [[ -z $beside ]] || { kill -- "-$beside" || true; wait "$beside" || true; } 2>/dev/null
    [[ -z $building ]] || rm -rf "$building"
    exit "$status"
}
trap clean_up EXIT
exec 3>&2   # where the last word goes, whatever is being written to a log
trap '[[ -n $is_beside ]] || printf "\nStopped; nothing half-made is left behind.\n" >&3; exit 130' INT TERM HUP

# last_words LOG: its last line worth showing, plain characters only, so that it can be cut anywhere.
last_words() { grep -v '^WARNING' "$1" 2>/dev/null | tail -n 1 | LC_ALL=C tr -cd '\40-\176'; }

# step TEXT LOG COMMAND...: runs the command with its output in LOG, and shows TEXT with the seconds that pass.
step() {
    local text=$1 log=$2 began=$SECONDS status=0
    shift 2
    mkdir -p "$LOGS"
    clear_line
    if [[ -t 1 && -z $is_beside ]]; then
        # in the background, so that Ctrl-C reaches the command itself
        ( while kill -0 $$ 2>/dev/null; do
              printf '\r\033[K… %s  %d s  %.60s' "$text" "$((SECONDS - began))" "$(last_words "$log")"
              sleep 1
          done ) &
        ticker=$!
    else
        printf '… %s\n' "$text"
    fi
    { "$@" </dev/null; } >"$log" 2>&1 || status=$?   # in braces, so that the shell's word on a killed command goes there
    stop_ticker
    clear_line
    ((status == 0)) || return "$status"
    printf '✓ %s  %d s\n' "$text" "$((SECONDS - began))"
}

choose_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; then
            printf '%s' "$candidate"
            return
        fi
    done
    die "Python 3.11, 3.12 or 3.13 is needed and none was found: install one, or name it: make PYTHON=/path/to/python3.11 ..."
}

need_disk() {
    local needed_mb=$1 free_mb
    free_mb=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1024))
    ((free_mb >= needed_mb)) || die "Not enough disk space in $PWD: $needed_mb MB are needed for $2, $free_mb MB are free."
}

# explain LOG WHAT: one line about why a pip run failed.
explain() {
    local log=$1 what=$2
    if grep -qi 'no space left on device' "$log"; then
        die "The disk filled up while installing $what: free some space and run the command again."
    elif grep -qiE 'ensurepip is not|No module named (venv|ensurepip)' "$log"; then
        die "This Python cannot make virtual environments: install its venv package (Debian, Ubuntu: apt-get install python3-venv)."
    elif grep -qiE 'NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|name resolution|network is unreachable|connection (broken|refused|reset)|from versions: none' "$log"; then
        die "Cannot reach the Python package index for $what: check the network or set PIP_INDEX_URL to a mirror, then run the command again ($log)."
    fi
    die "Installing $what failed: $(grep -E '^(ERROR|error)' "$log" | tail -n 1 || true) (all of it: $log)"
}

# cpu_torch DIR: the CPU build of torch into DIR on a machine without a GPU; the package index's build brings CUDA.
cpu_torch() {
    [[ $(uname -sm) == "Linux x86_64" ]] && ! command -v nvidia-smi >/dev/null && [[ ! -e /proc/driver/nvidia ]] || return 0
    local log=$LOGS/install-torch.log
    step "Installing torch for the CPU into $1" "$log" "$1/bin/python" -m pip install --disable-pip-version-check --no-input \
        --no-deps --retries 1 --timeout 20 --index-url "$CPU_TORCH" "$(grep '^torch==' requirements.txt)" ||
        printf 'PyTorch builds for the CPU cannot be had from %s: torch comes from the package index, with 3 GB of CUDA libraries that this machine has no use for.\n' "$CPU_TORCH"
}

# ensure_venv DIR WHAT MEGABYTES FINGERPRINT PIP-ARGUMENTS...: DIR holds a finished environment for this fingerprint afterwards.
ensure_venv() {
    local dir=$1 what=$2 megabytes=$3 fingerprint=$4 log
    shift 4
    log="$LOGS/install-${dir#.}.log"
    if [[ -x $dir/bin/python && -f $dir/.installed ]]; then
        [[ $(<"$dir/.installed") != "$PWD $fingerprint" ]] || return 0
        # programs inside a virtual environment know its absolute path: after a move only a new one works
        [[ $(<"$dir/.installed") == "$PWD "* ]] || rm -rf "$dir"
    fi
    [[ ! -f $dir/.unfinished ]] || rm -rf "$dir"   # left by a run that was killed
    local python
    python=$(choose_python)
    if [[ ! -x $dir/bin/python ]]; then
        need_disk "$megabytes" "$what"
        mkdir -p "$dir"
        building=$dir
        touch "$dir/.unfinished"
        step "Making $dir with $("$python" -V 2>&1)" "$log" "$python" -m venv "$dir" || explain "$log" "$what"
    fi
    [[ $what != semsam ]] || cpu_torch "$dir"
    step "Installing $what into $dir" "$log" "$dir/bin/python" -m pip install --disable-pip-version-check --no-input "$@" || explain "$log" "$what"
    printf '%s' "$PWD $fingerprint" >"$dir/.installed"
    rm -f "$dir/.unfinished"
    building=""
}

ensure_chromium() {
    local name
    for name in ${CHROMIUM:+"$CHROMIUM"} chromium chromium-browser google-chrome; do
        ! command -v "$name" >/dev/null || return 0
    done
    [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null ||
        die "The browser tests need Chromium: install it (Debian: sudo apt-get install chromium) or set CHROMIUM to its path."
    step "Installing Chromium" "$LOGS/install-chromium.log" \
        sh -c 'apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium' ||
        die "Chromium could not be installed with apt-get: see $LOGS/install-chromium.log."
}

ensure_postgres() {
    local place
    for place in "" /usr/lib/postgresql/*/bin/; do
        ! command -v "${place}initdb" >/dev/null || return 0
    done
    [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null ||
        die "The tests of the store need PostgreSQL: install it (Debian: sudo apt-get install postgresql)."
    # without a cluster of its own: tests make theirs
    step "Installing PostgreSQL" "$LOGS/install-postgres.log" \
        sh -c 'mkdir -p /etc/postgresql-common && echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
               apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql' ||
        die "PostgreSQL could not be installed with apt-get: see $LOGS/install-postgres.log."
}

# start_beside: Label Studio's environment, in a process group of its own, so that it can be stopped with all it started.
start_beside() {
    set -m
    SEMSAM_INSTALL_BESIDE=1 scripts/install.sh label-studio &
    beside=$!
    set +m
}

# finish_beside: waits for it; its failure, which it has told, is this script's.
finish_beside() {
    local status=0
    wait "$beside" || status=$?
    beside=""
    ((status == 0)) || exit 1
}

requirements=$(cat requirements.txt pyproject.toml | cksum)
[[ " $* " != *" semsam "*"label-studio "* ]] || start_beside
for wanted in "$@"; do
    case $wanted in
        semsam)
            ensure_venv .venv semsam 4000 "$requirements" -r requirements.txt -e . ;;
        dev)
            if [[ ! -f .venv/.installed-dev || $(<.venv/.installed-dev) != "$requirements" ]]; then
                step "Installing test and lint tools into .venv" "$LOGS/install-dev.log" \
                    .venv/bin/python -m pip install --disable-pip-version-check --no-input -e '.[dev]' ||
                    explain "$LOGS/install-dev.log" "the test and lint tools"
                printf '%s' "$requirements" >.venv/.installed-dev
            fi ;;
        label-studio)
            [[ -n $beside ]] || ensure_venv .venv-ls "Label Studio $LABEL_STUDIO_VERSION" 2500 "$LABEL_STUDIO_VERSION" "label-studio==$LABEL_STUDIO_VERSION" ;;
        chromium)
            ensure_chromium ;;
        postgres)
            ensure_postgres ;;
        *)
            die "scripts/install.sh knows semsam, dev, label-studio, chromium and postgres, not '$wanted'." ;;
    esac
done
[[ -z $beside ]] || finish_beside
