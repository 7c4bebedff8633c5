# shellcheck shell=bash
# Kafka's protected listeners, on request: SASL over TLS, TLS with client certificates, and SASL without TLS. An authority,
# certificates and a password are made for them, and stay with the data folder.

KAFKA_USER=floodway
PROTECTED_LISTENERS=(sasl_ssl ssl sasl_plaintext)

is_secure() { [[ -n $(setting secure) ]]; }

kafka_protected_port() { setting "${1//-/_}_$2_port"; } # NODE LISTENER

choose_secure_settings() {
  local number listener
  if [[ -n $WANT_SECURE ]] && ! is_secure; then
    kafka_has_data && die "$DIR holds a cluster without protected listeners; run 'reset' first, or use another --dir"
    remember secure yes
  fi
  is_secure || return 0
  [[ -n $(setting kafka_password) ]] || remember kafka_password "$(random_text 24)"
  for ((number = 1; number <= $(brokers); number++)); do
    for listener in "${PROTECTED_LISTENERS[@]}"; do
      choose_port "kafka_${number}_${listener}_port"
    done
  done
  ensure_certificates
}

openssl_quietly() {
  local output
  output=$(openssl "$@" 2>&1) && return
  tail -n 5 <<<"$output" >&2
  die "openssl ${1}: failed (see above)"
}

# sign_certificate NAME EXTENSIONS: a key and a certificate of our authority. Ten years: the data folder goes first.
sign_certificate() {
  local extensions=$2
  openssl_quietly req -new -newkey rsa:2048 -nodes -subj "/CN=$1" -keyout "$1-key.pem" -out "$1.csr"
  printf '%s\n' "$extensions" >"$1.ext"
  openssl_quietly x509 -req -in "$1.csr" -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 3650 \
    -extfile "$1.ext" -out "$1.pem"
  rm "$1.csr" "$1.ext"
}

# The broker's certificate names its address only, so that any other name of it, such as localhost, is a wrong one.
ensure_certificates() {
  [[ ! -d $DIR/tls ]] || return 0
  have openssl || die "openssl is needed to make certificates; run: scripts/stack prerequisites"
  say "kafka: making an authority and certificates in $DIR/tls"
  rm -rf "$DIR/tls.new"
  (
    umask 077
    mkdir -p "$DIR/tls.new"
    cd "$DIR/tls.new"
    openssl_quietly req -x509 -newkey rsa:2048 -nodes -days 3650 -subj '/CN=Floodway development' \
      -keyout ca-key.pem -out ca.pem
    sign_certificate kafka 'subjectAltName=IP:127.0.0.1'
    sign_certificate client 'extendedKeyUsage=clientAuth'
    cat kafka-key.pem kafka.pem ca.pem >kafka-keystore.pem
    setting kafka_password | tr -d '\n' >password
  ) || die "could not make certificates in $DIR/tls.new"
  mv "$DIR/tls.new" "$DIR/tls"
}

# ,NAME://ADDRESS for each protected listener
secure_listeners() { # NODE
  local listener
  is_secure || return 0
  for listener in "${PROTECTED_LISTENERS[@]}"; do
    printf ',%s://127.0.0.1:%s' "${listener^^}" "$(kafka_protected_port "$1" "$listener")"
  done
}

secure_protocols() {
  local listener
  is_secure || return 0
  for listener in "${PROTECTED_LISTENERS[@]}"; do printf ',%s:%s' "${listener^^}" "${listener^^}"; done
}

secure_properties() {
  local listener password
  is_secure || return 0
  password=$(setting kafka_password)
  cat <<PROPERTIES

sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
ssl.keystore.type=PEM
ssl.keystore.location=$DIR/tls/kafka-keystore.pem
ssl.truststore.type=PEM
ssl.truststore.location=$DIR/tls/ca.pem
listener.name.ssl.ssl.client.auth=required
PROPERTIES
  for listener in sasl_ssl sasl_plaintext; do
    cat <<PROPERTIES
listener.name.$listener.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_$KAFKA_USER="$password";
listener.name.$listener.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.$listener.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
PROPERTIES
  done
}

# Options that give a new cluster its user.
secure_format_options() {
  local mechanism
  is_secure || return 0
  for mechanism in SCRAM-SHA-256 SCRAM-SHA-512; do
    printf '%s\n' --add-scram "$mechanism=[name=$KAFKA_USER,password=$(setting kafka_password)]"
  done
}

protected_addresses() { # LISTENER
  local node list=
  for node in $(kafka_nodes); do
    list+=,127.0.0.1:$(kafka_protected_port "$node" "$1")
  done
  printf '%s' "${list:1}"
}

# Not FLOODWAY_...: those are Floodway's own settings, and it refuses what it does not know.
secure_env_lines() {
  is_secure || return 0
  printf '# Protected listeners: SASL over TLS, TLS with a client certificate, SASL without TLS.\n'
  export_line STACK_KAFKA_SECURE_BROKERS "$(protected_addresses sasl_ssl)"
  export_line STACK_KAFKA_MTLS_BROKERS "$(protected_addresses ssl)"
  export_line STACK_KAFKA_SASL_PLAINTEXT_BROKERS "$(protected_addresses sasl_plaintext)"
  export_line STACK_KAFKA_USER "$KAFKA_USER"
  export_line STACK_KAFKA_PASSWORD_FILE "$DIR/tls/password"
  export_line STACK_KAFKA_CA_FILE "$DIR/tls/ca.pem"
  export_line STACK_KAFKA_CERTIFICATE_FILE "$DIR/tls/client.pem"
  export_line STACK_KAFKA_KEY_FILE "$DIR/tls/client-key.pem"
}
