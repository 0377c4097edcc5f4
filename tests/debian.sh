#!/usr/bin/env bash
# RVS on another Debian than this machine's, from nothing: `tests/debian.sh trixie` is Debian 13 with its DPDK 24.11.
# `tests/debian.sh trixie demo` takes only this step again; they are: install, unit, demo, deb, use. One more is taken only when
# it is asked for: metal, `make test-metal` on a machine that has only what .ci installs.
#
# In a root made by debootstrap: build, unit tests, demo and package; then the package, by apt, in a root that has seen
# nothing of DPDK yet. Sources, Rust and cargo's downloads are this machine's, seen read-only. All mounts and processes
# are in namespaces of this script's own and end with it; what was downloaded and built stays in target/debian-SUITE for
# the next time.
set -euo pipefail
cd "$(dirname "$0")/.."

suite=${1:?expected the name of a Debian release, e.g. trixie}
place=$PWD/target/debian-$suite
sysroot=$(rustc --print sysroot)
cargo_home=${CARGO_HOME:-$HOME/.cargo}

step() { printf '\n== %s: %s (%d s)\n' "$suite" "$*" "$SECONDS"; }

# From where this machine has its own packages, by the same proxy if there is one.
bootstrap() {
    local mirror
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
    rm -rf "$place/base.new"
    debootstrap --variant=minbase --include=ca-certificates,make "$suite" "$place/base.new" "${mirror:?}"
    apt-config dump Acquire | grep -iE '^Acquire::https?::' > "$place/base.new/etc/apt/apt.conf.d/90machine" || true
    mv "$place/base.new" "$place/base"
}

# The root NAME: what debootstrap has made, and above it what is changed there.
enter_root() {
    local root=$place/$1/root
    mkdir -p "$place/$1"/{root,upper,work}
    mount -t overlay overlay -o "lowerdir=$place/base,upperdir=$place/$1/upper,workdir=$place/$1/work" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs tmpfs "$root/dev/shm"
    # Whoever is purged in here removes no table of this machine's.
    [[ ! -d $root/dev/hugepages ]] || mount -t tmpfs tmpfs "$root/dev/hugepages"
    mount -t tmpfs tmpfs "$root/run"
    cp --dereference /etc/resolv.conf /etc/hosts "$root/etc/"
}

in_root() {
    local root=$place/$1/root
    shift
    env -i HOME=/root TERM=dumb LANG=C.UTF-8 CI=true DEBIAN_FRONTEND=noninteractive \
        PATH="$sysroot/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
        CARGO_HOME="$cargo_home" CARGO_NET_OFFLINE=true \
        ${network:+unshare --net} chroot "$root" sh -euc "$*"
}

# A directory of this machine's, where it is here, read-only.
show() {
    mkdir -p "$place/build/root$1"
    mount -o bind,ro "$1" "$place/build/root$1"
}

# Where it is built.
enter_build() {
    enter_root build
    show "$sysroot"
    show "$cargo_home"
    install "$(command -v cargo-nextest)" "$place/build/root/usr/local/bin/"
    mkdir -p "$place/build/root/rvs" "$place/build/target" target
    mount -o bind,ro . "$place/build/root/rvs"
    mount --bind "$place/build/target" "$place/build/root/rvs/target"
}

# One without NICs, which forwards nothing: it is there if DPDK finds its drivers.
router() {
    cat <<'END'
[eal]
hugepages = false
memory = 256

[workers]
cores = [0]
idle = "adaptive"

[table]
connections = 1024

[admin]
socket = "/run/rvs.sock"

[[port]]
name = "wan"
device = "net_null0"
addresses = ["192.0.2.1/24"]

[[service]]
address = "192.0.2.10:80"
mode = "nat"

[[service.server]]
address = "192.0.2.11:80"
END
}

# On a machine without anything of DPDK's: what the package depends on has to be enough.
use() {
    rm -rf "$place/clean"
    enter_root clean
    cp "$place"/build/target/debian/rvs_*.deb "$place/clean/root/root/"
    in_root clean 'apt-get update -qq && apt-get install -y -qq --no-install-recommends /root/rvs_*.deb > /root/apt.log'
    in_root clean 'dpkg-query --show --showformat "\${Version} \${Depends}\n" rvs && rvs --version && rvs check --no-machine -c /etc/rvs/rvs.toml'
    router > "$place/clean/root/root/rvs.toml"
    # In a network of its own, and with nothing of this machine's NICs to be given back.
    mount -o remount,bind,ro "$place/clean/root/sys"
    network=own in_root clean '
        cd /root
        rvs run -c rvs.toml > rvs.log 2>&1 &
        rvs=$!
        i=0
        until rvs list -s /run/rvs.sock 2> /dev/null; do
            i=$((i + 1))
            kill -0 $rvs && [ $i -lt 300 ] || { cat rvs.log; exit 1; }
            sleep 0.1
        done
        kill $rvs
        wait $rvs
        apt-get purge -y -qq rvs > /dev/null
        for left in /etc/rvs /usr/sbin/rvs /usr/share/doc/rvs; do
            [ ! -e $left ] || { echo "$left is left"; exit 1; }
        done'
}

steps=("${@:2}")
[[ ${#steps[@]} -gt 0 ]] || steps=(install unit demo deb use)

if [[ -n ${RVS_INSIDE:-} ]]; then
    enter_build
    for name in "${steps[@]}"; do
        step "$name"
        case $name in
        install) in_root build 'cd /rvs && .ci/install && pkg-config --modversion libdpdk' ;;
        unit | demo) in_root build "cd /rvs && make $name" ;;
        # Of what the demo has shown: an optimised program would depend on the same.
        deb) in_root build 'cd /rvs && make deb RVS=target/debug/rvs' ;;
        use) use ;;
        metal) in_root build 'cd /rvs && make test-metal' ;;
        *)
            echo "$name is no step; expected install, unit, demo, deb, use or metal" >&2
            exit 2
            ;;
        esac
    done
    step "done"
    exit
fi
if [[ $EUID -ne 0 ]]; then
    echo "tests/debian.sh mounts and makes namespaces: expected to be run as root" >&2
    exit 1
fi
mkdir -p "$place"
[[ -d $place/base ]] || bootstrap
cargo fetch --quiet --locked
RVS_INSIDE=1 exec unshare --mount --propagation private --pid --fork --kill-child tests/debian.sh "$suite" "${steps[@]}"
