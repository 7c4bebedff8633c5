# shellcheck shell=bash
# Shared by the parts of scripts/stack: messages, remembered settings, processes and ports.

say() { printf 'stack: %s\n' "$*" >&2; }

die() {
  say "$@"
  exit 1
}

# ---- settings that one data folder keeps (ports, passwords, number of brokers) -------------------------------------

# setting NAME: prints the remembered value, or nothing.
setting() { # (the last line of a name counts, so that remembering is one append)
  [[ -f $DIR/settings ]] || return 0
  sed -n "s/^$1=//p" "$DIR/settings" | tail -n 1
}

remember() {
  [[ $(setting "$1") == "$2" ]] && return
  (umask 077 && printf '%s=%s\n' "$1" "$2" >>"$DIR/settings")
}

random_text() { # LENGTH; letters and digits only, so that it needs no quoting in a URL
  local text=
  while ((${#text} < $1)); do
    text+=$(head -c 64 /dev/urandom | base64 | tr -dc 'A-Za-z0-9')
  done
  printf '%s' "${text:0:$1}"
}

# ---- the lock: one change at a time per data folder ----------------------------------------------------------------

with_lock() { # FILE COMMAND...: the lock ends with the command, or with this script
  local file=$1 fd
  shift
  exec {fd}>"$file"
  if ! flock -n "$fd"; then
    say "waiting for another scripts/stack that works in ${file%/*}"
    flock -w 600 "$fd" || die "the other one still holds $file after 10 minutes"
  fi
  LOCKS+=("$fd")
  "$@"
  unset 'LOCKS[-1]'
  exec {fd}>&-
}

# ---- ports ---------------------------------------------------------------------------------------------------------

listening() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# A free port below the range the system takes outgoing connections from, so that it stays free while we are down.
free_port() {
  local port
  for _ in {1..200}; do
    port=$((20000 + (RANDOM << 15 | RANDOM) % 12000))
    listening "$port" && continue
    # Nor one that another stack has chosen and does not listen on, or not yet.
    grep -qs "_port=$port\$" "$DIR/settings" "$ROOT/.stack/settings" "$ROOT"/.stack/*/settings && continue
    printf '%s' "$port"
    return
  done
  die "found no free port between 20000 and 32000 on 127.0.0.1"
}

# choose_port NAME [WANTED]: a given port is remembered; else the remembered one; else a free one, remembered.
choose_port() {
  local port=${2:-}
  [[ -n $port ]] || port=$(setting "$1")
  [[ -n $port ]] || port=$(free_port)
  remember "$1" "$port"
}

require_port() { # COMPONENT PORT OPTION
  listening "$2" || return 0
  local holder=
  if command -v ss >/dev/null; then
    holder=$(ss -Hltnp "sport = :$2" 2>/dev/null | sed -n 's/.*users:(("\([^"]*\)",pid=\([0-9]*\).*/ by \1 (pid \2)/p' | head -n 1)
  fi
  die "$1 cannot start: port $2 on 127.0.0.1 is already taken$holder; free it, or choose another with $3"
}

# ---- processes -----------------------------------------------------------------------------------------------------

# A pid file counts only if that process has the component's mark among its arguments: pids get reused.
pid_of() { # COMPONENT; prints the pid and succeeds if it runs
  local pid
  [[ -f $DIR/run/$1.pid ]] || return 1
  read -r pid <"$DIR/run/$1.pid" || return 1
  [[ $pid =~ ^[0-9]+$ && -r /proc/$pid/cmdline ]] || return 1
  tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | grep -qxF -- "$(mark_of "$1")" || return 1
  printf '%s' "$pid"
}

mark_of() {
  case $1 in
  postgres) postgres_data ;;
  *) printf -- '-Dfloodway.stack=%s' "$DIR/$1" ;;
  esac
}

drop_stale_pid_file() {
  [[ -f $DIR/run/$1.pid ]] || return 0
  say "$1: its pid file names pid $(<"$DIR/run/$1.pid"), which is not this server (any more); ignoring it"
  rm -f "$DIR/run/$1.pid"
}

# launch COMPONENT OUTPUT COMMAND...: starts it detached from the terminal, without our locks, and notes its pid.
launch() {
  local component=$1 output=$2 pid fd
  shift 2
  (
    for fd in "${LOCKS[@]}"; do exec {fd}>&-; done
    cd "$DIR/logs" || exit
    exec setsid "$@" </dev/null >>"$output" 2>&1
  ) &
  pid=$!
  disown "$pid"
  printf '%s\n' "$pid" >"$DIR/run/$component.pid"
}

# PostgreSQL works in child processes; a signal that is to freeze or kill the server must reach them too.
with_children() { # PID
  local children=
  read -r children 2>/dev/null <"/proc/$1/task/$1/children" || true
  printf '%s %s' "$1" "$children"
}

process_state() { sed 's/.*) \(.\).*/\1/' "/proc/$1/stat" 2>/dev/null; }
is_paused() { [[ $(process_state "$1") == T ]]; }
is_alive() { [[ $(process_state "$1") == [!ZX] ]]; }

wait_until_gone() { # PID SECONDS
  local end=$((SECONDS + $2))
  while is_alive "$1"; do
    ((SECONDS < end)) || return 1
    sleep 0.05
  done
}

# Logs that only we append to: beyond 20 MB the old one is set aside.
roll_log() {
  if [[ -f $1 ]] && (($(stat -c %s "$1") > 20000000)); then
    mv "$1" "$1.1"
  fi
}

# Milliseconds, for "up in 2.9 s".
now_ms() { printf '%s' "$((${EPOCHREALTIME/[.,]/} / 1000))"; }

seconds_since() {
  local ms=$(($(now_ms) - $1))
  printf '%d.%d s' $((ms / 1000)) $((ms % 1000 / 100))
}

# ask PORT HEX: sends a message to a server here and prints what comes back first, in hex; waits at most 2 s.
ask() {
  local message
  # shellcheck disable=SC2001 # not a plain replacement
  message=$(sed 's/../\\x&/g' <<<"$2")
  # shellcheck disable=SC2016 # expanded by the inner shell
  timeout 2 bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$1" && printf "$2" >&3 && dd bs=4096 count=1 status=none <&3' \
    ask "$1" "$message" 2>/dev/null | od -An -v -tx1 | tr -d ' \n'
}

hex16() { printf '%04x' "$1"; }
hex32() { printf '%08x' "$1"; }
hex_text() { printf '%s' "$1" | od -An -v -tx1 | tr -d ' \n'; }
