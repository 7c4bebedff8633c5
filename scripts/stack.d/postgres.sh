# shellcheck shell=bash
# PostgreSQL, which refuses to run as root: for root it runs as a system user of its own.

PG_USER=floodway-pg
PG_FALLBACK=/var/lib/floodway-stack # for root, when $PG_USER cannot reach the data folder (say, below /root)

postgres_home() { setting postgres_home; }
postgres_data() { printf '%s/data' "$(postgres_home)"; }
postgres_port() { setting postgres_port; }
postgres_address() { printf '127.0.0.1:%s' "$(postgres_port)"; }
postgres_url() { printf 'postgres://floodway:%s@%s/floodway' "$(setting postgres_password)" "$(postgres_address)"; }

ensure_postgres_user() {
  ((EUID == 0)) || return 0
  id "$PG_USER" >/dev/null 2>&1 && return
  say "PostgreSQL must not run as root; creating the system user $PG_USER"
  useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$PG_USER" ||
    die "could not create the system user $PG_USER"
}

# What goes before a command that is to run as that user; nothing if we are not root.
set_run_as() {
  RUN_AS=()
  if ((EUID == 0)); then RUN_AS=(setpriv --reuid "$PG_USER" --regid "$PG_USER" --clear-groups --inh-caps=-all); fi
}

as_postgres() ( # COMMAND...; in a folder that any user can be in
  cd /
  "${RUN_AS[@]}" "$@"
)

reachable() { as_postgres test -x "$1"; }

# Where data and binaries lie: below DIR and CACHE, or in PG_FALLBACK if the unprivileged user cannot get there.
choose_postgres_home() {
  local home=$DIR/postgres
  [[ -n $(postgres_home) ]] && return
  if ! reachable "$DIR"; then
    home=$PG_FALLBACK/$(printf '%s' "$DIR" | sha256sum | cut -c1-12)
    say "postgres: the user $PG_USER cannot reach $DIR, so its data go to $home"
  fi
  remember postgres_home "$home"
}

postgres_binaries() {
  if reachable "$CACHE"; then
    printf '%s/postgres-%s' "$CACHE" "$(postgres_jar_sum | cut -c1-12)"
  else
    printf '%s/postgres-%s' "$PG_FALLBACK" "$(postgres_jar_sum | cut -c1-12)"
  fi
}

choose_postgres_settings() {
  choose_port postgres_port "$WANT_POSTGRES_PORT"
  if [[ -n $WANT_ARCHIVE ]]; then remember postgres_archive yes; fi
  [[ -n $(setting postgres_password) ]] || remember postgres_password "$(random_text 24)"
}

postgres_conf() {
  cat <<CONF
# Written by scripts/stack at every start; settings of your own belong in postgresql.conf.
listen_addresses = '127.0.0.1'
port = $(postgres_port)
unix_socket_directories = ''
max_connections = 200
shared_buffers = 256MB
fsync = on
synchronous_commit = on
full_page_writes = on
password_encryption = 'scram-sha-256'
log_line_prefix = '%m [%p] %d '
timezone = 'UTC'
log_timezone = 'UTC'
CONF
}

# With --archive: WAL is copied to a folder beside the data, as it would be to another machine, in small files and often.
is_archiving() { [[ $(setting postgres_archive) == yes ]]; }
postgres_archive() { printf '%s/archive' "$(postgres_home)"; }

archive_conf() {
  is_archiving || return 0
  cat <<CONF
archive_mode = on
archive_timeout = '2s'
archive_command = 'cmp -s "%p" "$(postgres_archive)/%f" || { test ! -e "$(postgres_archive)/%f" && cp "%p" "$(postgres_archive)/%f.part" && mv "$(postgres_archive)/%f.part" "$(postgres_archive)/%f"; }'
CONF
}

archive_env_lines() {
  is_archiving || return 0
  printf '# For scripts/backup and scripts/restore; the user floodway_backup has the password of floodway.\n'
  export_line STACK_POSTGRES_DATA "$(postgres_data)"
  export_line STACK_POSTGRES_ARCHIVE "$(postgres_archive)"
}

# Creates the data folder, and in it the user floodway (may create databases, is not superuser), the user floodway_backup (may
# copy the server and replicate, reads no table) and the database floodway.
# The superuser postgres gets no password, so nobody can log in as it over the network.
init_postgres() { # BINARIES
  local home data output
  home=$(postgres_home) data=$(postgres_data)
  [[ -f $data/PG_VERSION && -f $home/ready ]] && return
  say "postgres: creating the database cluster in $data"
  rm -rf "$data"
  output=$(
    as_postgres "$1/bin/initdb" -D "$data" -U postgres --auth-local=reject --auth-host=scram-sha-256 \
      --wal-segsize="$(if is_archiving; then echo 1; else echo 16; fi)" --encoding=UTF8 --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8 2>&1 &&
      printf "include_if_exists 'stack.conf'\n" | as_postgres tee -a "$data/postgresql.conf" &&
      printf '%s\n' "CREATE ROLE floodway LOGIN CREATEDB PASSWORD '$(setting postgres_password)'" \
        'GRANT pg_monitor TO floodway' 'CREATE DATABASE floodway OWNER floodway' \
        "CREATE ROLE floodway_backup LOGIN REPLICATION PASSWORD '$(setting postgres_password)'" \
        'GRANT pg_monitor TO floodway_backup' \
        'GRANT EXECUTE ON FUNCTION pg_backup_start, pg_backup_stop, pg_switch_wal, pg_promote TO floodway_backup' |
      as_postgres "$1/bin/postgres" --single -D "$data" -c exit_on_error=true postgres 2>&1
  ) || {
    tail -n 15 <<<"$output" >&2
    die "postgres: could not create $data (see above)"
  }
  touch "$home/ready"
}

# A killed server leaves its lock file, and PostgreSQL takes the lock for held while the dead process is still a zombie
# (where nobody reaps it, as in many containers, that is for ever). A pid that cannot exist takes its place; the rest
# of the file stays, as PostgreSQL uses it to make sure that no child of the old server is left.
release_dead_lock() {
  local lock pid
  lock=$(postgres_data)/postmaster.pid
  [[ -f $lock ]] || return 0
  read -r pid <"$lock" || return 0
  is_alive "$pid" || as_postgres sed -i '1s/.*/2147483647/' "$lock"
}

launch_postgres() {
  local binaries home
  ensure_postgres_user
  set_run_as
  choose_postgres_home
  require_port postgres "$(postgres_port)" "--postgres-port"
  binaries=$(postgres_binaries)
  with_lock "$CACHE/lock" unpack_postgres "$binaries"
  home=$(postgres_home)
  mkdir -p "$home"
  if ((EUID == 0)); then chown "$PG_USER:$PG_USER" "$home"; fi
  init_postgres "$binaries"
  if is_archiving; then as_postgres mkdir -p "$(postgres_archive)"; fi
  { postgres_conf && archive_conf; } | as_postgres tee "$(postgres_data)/stack.conf" >/dev/null
  release_dead_lock
  roll_log "$DIR/logs/postgres.log"
  say "postgres: starting"
  launch postgres "$DIR/logs/postgres.log" "${RUN_AS[@]}" "$binaries/bin/postgres" -D "$(postgres_data)"
}

# Begins a connection as floodway. PostgreSQL answers 'R' (now authenticate) only once it takes connections; before
# that, and when it is full, it answers 'E'. This is what pg_isready does, which the artifact does not have.
postgres_answers() {
  postgres_replies 52
}

# Whether it is there and takes no connections yet, as after a crash, when it reads its log again.
postgres_recovers() {
  postgres_replies 45
}

postgres_replies() { # HEX: the first byte
  local body
  body=00030000$(hex_text user)00$(hex_text floodway)00$(hex_text database)00$(hex_text floodway)0000
  [[ $(ask "$(postgres_port)" "$(hex32 $((${#body} / 2 + 4)))$body") == "$1"* ]]
}
