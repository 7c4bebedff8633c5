# shellcheck shell=bash
# What must be on the machine: found, installed with apt where we may, or named.

# A check prints nothing and succeeds if the tool is there.
have() { command -v "$1" >/dev/null 2>&1; }
have_java() { find_java >/dev/null; }
have_unzip() { have unzip || have jar || have python3; }
have_openssl() { have pkg-config && pkg-config --exists openssl 2>/dev/null; }
have_venv() { python3 -c 'import ensurepip, venv' >/dev/null 2>&1; }
have_go() { have go && [[ $(printf '%s\n' 1.24 "$(go env GOVERSION 2>/dev/null | sed 's/^go//')" | sort -V | head -n 1) == 1.24 ]]; }
have_util_linux() { have flock && have setsid && have setpriv; }

java_version() { "$1" -version 2>&1 | sed -n '1s/.*version "\(1\.\)\?\([0-9]*\).*/\2/p'; }

# The first java of version 17 or newer: JAVA_HOME, then the path, then where Debian puts them.
find_java() {
  local java version
  for java in "${JAVA_HOME:-/none}/bin/java" "$(command -v java)" /usr/lib/jvm/*/bin/java; do
    [[ -x $java ]] || continue
    version=$(java_version "$java")
    if ((${version:-0} >= 17)); then
      printf '%s' "$java"
      return
    fi
  done
  return 1
}

need_java() {
  JAVA=$(find_java) || die "no Java of version 17 or newer is here; run: scripts/stack prerequisites"
}

java_package() {
  local version
  for version in 17 21 25; do
    if apt-cache show "openjdk-$version-jre-headless" >/dev/null 2>&1; then
      printf 'openjdk-%s-jre-headless' "$version"
      return
    fi
  done
  printf 'openjdk-17-jre-headless'
}

# One line per missing thing: "package<tab>what". Servers first, then what building and testing Floodway needs.
missing_for_servers() {
  have_java || printf '%s\tJava 17 or newer (runs Kafka)\n' "$(java_package)"
  artifacts_present || have mvn || printf 'maven\tMaven (fetches Kafka and PostgreSQL)\n'
  have xz || printf 'xz-utils\txz (unpacks PostgreSQL)\n'
  have_unzip || printf 'unzip\tunzip (unpacks PostgreSQL)\n'
  have_util_linux || printf 'util-linux\tflock, setsid and setpriv\n'
}

missing_for_build() {
  have mvn || printf 'maven\tMaven (fetches Kafka and PostgreSQL)\n'
  have g++ || printf 'g++\ta C++ compiler (builds the Kafka client library)\n'
  have make || printf 'make\tmake (builds the Kafka client library)\n'
  have pkg-config || printf 'pkg-config\tpkg-config (finds OpenSSL)\n'
  have_openssl || printf 'libssl-dev\tOpenSSL headers (TLS to Kafka)\n'
}

missing_for_tests() {
  have python3 || printf 'python3\tPython 3 (end-to-end tests, checks of the Kubernetes manifests)\n'
  have_venv || printf 'python3-venv\tthe venv module of Python (end-to-end tests)\n'
  have pgbouncer || printf 'pgbouncer\tPgBouncer (tests of a pooler before PostgreSQL)\n'
  have psql || printf 'postgresql-client\tpsql (scripts/backup and its end-to-end tests)\n'
  have openssl || printf 'openssl\topenssl (certificates of the end-to-end tests)\n'
  [[ -x /bin/kill || -x /usr/bin/kill ]] || printf 'procps\tkill (end-to-end tests)\n'
}

# What apt does not have, or not in the version needed: a line each.
missing_tools() { # build|test
  have cargo || echo "cargo: install Rust 1.95 or newer with rustup"
  [[ $1 == test ]] || return 0
  cargo fmt --version >/dev/null 2>&1 || echo "rustfmt: rustup component add rustfmt"
  cargo clippy --version >/dev/null 2>&1 || echo "clippy: rustup component add clippy"
  have_go || echo "Go 1.24 or newer (builds the checkers of the Kubernetes manifests): install it from its makers or your distribution"
}

# The command that makes us root, or nothing if we are; fails if we cannot become root without asking.
root_command() {
  ((EUID == 0)) && return
  have sudo && sudo -n true 2>/dev/null && printf 'sudo -n'
}

install_packages() { # PACKAGE...
  local become
  have apt-get && become=$(root_command) || return 1
  say "installing with apt: $*"
  local output
  # shellcheck disable=SC2086 # 'sudo -n' is two words, or none
  if output=$($become apt-get update -qq 2>&1 &&
    $become env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" 2>&1); then
    return
  fi
  tail -n 15 <<<"$output" >&2
  return 1
}

# provide LIST: installs what the list (as above) names; fails with the exact names if it cannot.
provide() {
  local list=$1 packages
  [[ -n $list ]] || return 0
  mapfile -t packages < <(cut -f1 <<<"$list" | sort -u)
  install_packages "${packages[@]}" && return
  say "missing on this machine:"
  sort -u <<<"$list" | sed 's/^[^\t]*\t/stack:   /' >&2
  say "install with: apt-get update && apt-get install -y ${packages[*]}   (as root)"
  return 1
}

# Starting the servers needs less than building and testing Floodway: the rest is only named.
ensure_prerequisites() {
  [[ $(uname -s) == Linux ]] || die "works on Linux only; elsewhere use compose.yaml with Docker"
  provide "$(missing_for_servers)" || exit 1
  need_java
  local rest
  rest=$(missing_for_build | cut -f1 | paste -sd ' ')
  [[ -z $rest ]] || say "note: building Floodway needs $rest too; 'scripts/stack prerequisites' installs them"
}

# prerequisites build|test: what 'make run' needs, or what 'make test' needs.
prerequisites() {
  local purpose=${1:-test} list tools
  [[ $(uname -s) == Linux ]] || die "works on Linux only; elsewhere use compose.yaml with Docker"
  [[ $purpose == build || $purpose == test ]] || die "prerequisites for what? build or test"
  list=$(missing_for_servers; missing_for_build)
  [[ $purpose == build ]] || list+=$'\n'$(missing_for_tests)
  provide "$(sort -u <<<"$list" | sed '/^$/d')" || exit 1
  tools=$(missing_tools "$purpose")
  [[ -z $tools ]] || die "missing: $tools"
  need_java
  say "all prerequisites are here: $("$JAVA" -version 2>&1 | head -n 1), $(cargo --version)"
}
