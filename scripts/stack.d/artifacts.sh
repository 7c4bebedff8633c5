# shellcheck shell=bash
# The jars of Kafka and PostgreSQL: fetched with Maven, checked against SHA256SUMS, PostgreSQL unpacked.

SUMS=$PARTS/SHA256SUMS

postgres_platform() {
  case $(uname -m) in
  x86_64 | amd64) printf 'linux-amd64' ;;
  aarch64 | arm64) printf 'linux-arm64v8' ;;
  *) printf 'none' ;;
  esac
}

# The lines of SHA256SUMS this machine needs.
sums_here() { awk -v here="-$PLATFORM-" '!/embedded-postgres/ || index($2, here)' "$SUMS"; }
postgres_jar() { sums_here | sed -n "s,.* \(embedded-postgres.*\),$JARS/\1,p"; }
postgres_jar_sum() { sums_here | sed -n 's/ .*embedded-postgres.*//p'; }
kafka_classpath() { sums_here | awk -v dir="$JARS" '!/embedded-postgres/ { printf "%s%s/%s", sep, dir, $2; sep = ":" }'; }

# A folder per set of checksums: an upgrade never mixes with what was there.
set_artifact_paths() {
  PLATFORM=$(postgres_platform)
  JARS=$CACHE/jars-$(sha256sum "$SUMS" | cut -c1-12)
}

artifacts_present() { [[ -f $JARS/complete ]]; }

maven_copy() { # PLATFORM FOLDER
  local output
  output=$(mvn -B -q -f "$PARTS/pom.xml" dependency:copy-dependencies \
    -DincludeScope=runtime -Dpostgres.platform="$1" -DoutputDirectory="$2" 2>&1) && return
  tail -n 15 <<<"$output" >&2
  die "Maven could not fetch the servers (see above)"
}

# check_sums FOLDER: stops at the first jar that differs or is missing.
check_sums() {
  local wrong
  wrong=$(cd "$1" && sums_here | sha256sum --check --quiet --strict 2>/dev/null | sed 's/: .*//') || true
  [[ -n $wrong ]] || return 0
  say "checksum error: in $1 these differ from $SUMS:"
  printf 'stack:   %s\n' "${wrong//$'\n'/$'\n'stack:   }" >&2
  die "nothing was started; remove $1 to fetch them again"
}

fetch_artifacts() {
  if ! artifacts_present; then
    local start new=$JARS.new
    start=$(now_ms)
    say "fetching Kafka and PostgreSQL with Maven into $CACHE"
    rm -rf "$new" "$JARS"
    mkdir -p "$new"
    maven_copy "$PLATFORM" "$new"
    check_sums "$new"
    touch "$new/complete"
    mv "$new" "$JARS"
    say "fetched $(sums_here | wc -l) jars in $(seconds_since "$start"), checksums are right"
  else
    check_sums "$JARS"
  fi
}

ensure_artifacts() {
  [[ $PLATFORM != none ]] || die "PostgreSQL's artifact exists for x86_64 and aarch64, not for $(uname -m)"
  mkdir -p "$CACHE"
  with_lock "$CACHE/lock" fetch_artifacts
}

unzip_here() { # ZIP; into the current folder
  if have unzip; then
    unzip -q "$1"
  elif have jar; then
    jar xf "$1"
  else
    python3 -m zipfile -e "$1" .
  fi
}

# unpack_postgres FOLDER: the jar holds one .txz with bin, lib and share.
unpack_postgres() {
  local folder=$1 sum
  sum=$(postgres_jar_sum)
  [[ -f $folder/unpacked && $(<"$folder/unpacked") == "$sum" ]] && return
  say "unpacking PostgreSQL into $folder"
  rm -rf "$folder" "$folder.new"
  mkdir -p "$folder.new"
  (
    cd "$folder.new"
    unzip_here "$(postgres_jar)"
    tar -xJf ./*.txz --no-same-owner
    rm -rf ./*.txz META-INF
    chmod -R a+rX .
    printf '%s\n' "$sum" >unpacked
  ) || die "could not unpack $(postgres_jar)"
  mv "$folder.new" "$folder"
}

# For a change of versions in pom.xml: writes SHA256SUMS anew, for both platforms.
checksums() {
  local folder platform
  folder=$(mktemp -d)
  for platform in linux-amd64 linux-arm64v8; do
    maven_copy "$platform" "$folder"
  done
  (cd "$folder" && sha256sum -- *.jar) >"$SUMS"
  rm -rf "$folder"
  say "wrote $SUMS ($(wc -l <"$SUMS") files); review the difference before you commit it"
}
