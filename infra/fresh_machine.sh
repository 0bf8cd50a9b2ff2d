#!/usr/bin/env bash
# Run README's two commands on a bare machine, as a stranger would: `infra/fresh_machine.sh SUITE`.
#
#     infra/fresh_machine.sh [--root] SUITE [COMMAND...]
#
# SUITE is a Debian that debootstrap can make: bookworm has Python 3.11, trixie 3.13. The machine gets what README asks for
# and nothing else, a user (or root alone, with --root) and a clone of what is committed here. COMMANDs replace the default:
# the demo on the quick recipe, `make down` and `make test`. `infra/fresh_machine.sh trixie bash` looks around.
#
# The machine is a directory in ~/.cache/flyweight with mounts and processes of its own: they end with this script, however
# it ends, and so does the directory unless the script is killed outright. From this host it has the kernel, the network
# (therefore the demo gets other ports) and the way to the package indices: proxies, certificates, settings of pip, uv and
# apt, but no wheels that lie here (PIP_FIND_LINKS). What has been downloaded is kept for the next run: the base system, and
# uv's cache, which the machine has while it is there (on one mount with what is installed, so that uv links the files).
set -euo pipefail

say() { printf '\n== %s\n' "$*"; }
stop() { printf '%s\n' "$*" >&2; exit 2; }

outside() {
    local machine
    [[ $EUID == 0 ]] || stop "a machine is made by root alone: sudo $0 $*"
    command -v debootstrap >/dev/null || stop "debootstrap is missing (apt-get install debootstrap)"
    mkdir -p "$CACHE"
    machine=$(mktemp -d "$CACHE/machine.XXXXXX")
    # shellcheck disable=SC2064
    trap "put_away '$machine'" EXIT
    unshare --mount --pid --fork --kill-child "$BASH" "$0" --inside "$machine" "$@"
}

# Remove the machine in $1 and keep uv's cache. The mounts were the child's and are gone: nothing else is removed.
put_away() {
    local cache
    for cache in "$1"/root/home/stranger/.cache/uv "$1"/root/root/.cache/uv; do
        [[ ! -d $cache || -d $CACHE/uv ]] || mv "$cache" "$CACHE/uv"
    done
    rm -rf --one-file-system "$1"
}

inside() {
    trap 'exit 130' INT TERM # the first process of its namespace has no default for them
    local user=stranger home=/home/stranger root=$1/root repository passed=() ports=()
    shift
    [[ $1 != --root ]] || { user=root home=/root; shift; }
    local suite=$1
    shift
    [[ $# -gt 0 ]] || set -- "make demo ARGS='--recipe digits'" "make down" "make test"
    repository=$(cd "$(dirname "$0")/.." && pwd)

    make_base "$suite" "$root"
    lead_to_indices "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs tmpfs "$root/dev/shm"
    [[ $user == root ]] || chroot "$root" useradd --create-home --shell /bin/bash "$user"
    git clone --quiet --bare "file://$repository" "$root/srv/flyweight"
    chroot "$root" install -d -o "$user" -g "$user" "$home/.cache"
    mv "$CACHE/uv" "$root$home/.cache/uv" 2>/dev/null || mkdir "$root$home/.cache/uv" # another machine may have it
    chroot "$root" chown -R "$user:$user" "$home/.cache/uv" /srv/flyweight

    # shellcheck disable=SC2207
    ports=($(chroot "$root" python3 -c "$FREE_PORTS"))
    enter() {
        chroot --userspec="$user:$user" "$root" env -i "HOME=$home" "USER=$user" "LOGNAME=$user" LANG=C.UTF-8 \
            PATH=/usr/local/bin:/usr/bin:/bin "TERM=${TERM:-dumb}" "${passed[@]}" "${ports[@]}" bash -c "$1"
    }
    enter "cd && git clone --quiet /srv/flyweight"
    say "$suite, $(enter 'python3 --version'), as $user: $(git -C "$repository" log -1 --format='%h %s')"
    for command; do
        say "$command"
        SECONDS=0
        enter "cd ~/flyweight && $command"
        say "$command: $SECONDS s"
    done
    [[ ! -d $root$home/flyweight/.venv ]] || say ".venv: $(du -sh "$root$home/flyweight/.venv" | cut -f1)"
}

# Leave a bare Debian in the directory $2: of today, or of this week, for its list of packages must hold.
make_base() {
    local base=$CACHE/$1.tar
    if [[ -n $(find "$base" -mtime -7 2>/dev/null) ]]; then
        mkdir "$2"
        tar -C "$2" -xpf "$base"
    else
        debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,git,make "$1" "$2"
        tar --one-file-system -C "$2" -cf "$2.tar" .
        mv "$2.tar" "$base" # whole, whoever else makes one
    fi
}

# Give the machine in $1 this host's way to the package indices; what goes through the environment is added to `passed`.
lead_to_indices() {
    local name bundle=/etc/ssl/certs/ca-certificates.crt
    cp -L /etc/resolv.conf /etc/hosts "$1/etc"
    [[ ! -f /etc/pip.conf ]] || cp /etc/pip.conf "$1/etc"
    apt-config dump | grep -E '^Acquire::(https?|Check-)' >"$1/etc/apt/apt.conf.d/99host" || true
    if [[ -n ${SSL_CERT_FILE:-} ]]; then
        cp "$SSL_CERT_FILE" "$1$bundle"
        passed+=("SSL_CERT_FILE=$bundle" "PIP_CERT=$bundle" "REQUESTS_CA_BUNDLE=$bundle")
    fi
    for name in {http,https,no}_proxy {HTTP,HTTPS,NO}_PROXY PIP_{INDEX_URL,EXTRA_INDEX_URL,TRUSTED_HOST,DEFAULT_TIMEOUT} \
        UV_{DEFAULT_INDEX,INDEX,INSECURE_HOST,HTTP_TIMEOUT}; do
        [[ -z ${!name:-} ]] || passed+=("$name=${!name}")
    done
}

FREE_PORTS='
import socket
names = ("AIRFLOW", "MLFLOW", "TRITON_GRPC", "TRITON_HTTP", "TRITON_METRICS")
for name, held in [(name, socket.create_server(("127.0.0.1", 0))) for name in names]:
    print(f"FLYWEIGHT_{name}_PORT={held.getsockname()[1]}")
'
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/flyweight

[[ $# -gt 0 && $* != --root ]] || stop "usage: $0 [--root] SUITE [COMMAND...]"
if [[ $1 == --inside ]]; then inside "${@:2}"; else outside "$@"; fi
