# shellcheck shell=bash
# Apache Kafka in KRaft mode: every node is broker and controller, named kafka-1, kafka-2, ...

brokers() {
  local count
  count=$(setting brokers)
  printf '%s' "${count:-1}"
}

kafka_nodes() { seq -f 'kafka-%g' 1 "$(brokers)"; }
kafka_port() { setting "${1//-/_}_port"; }             # kafka-1 -> kafka_1_port
kafka_controller_port() { setting "${1//-/_}_controller_port"; }

kafka_addresses() {
  local node list=
  for node in $(kafka_nodes); do
    list+=,127.0.0.1:$(kafka_port "$node")
  done
  printf '%s' "${list:1}"
}

kafka_has_data() { [[ -n $(compgen -G "$DIR/kafka-*/data") ]]; }

# Given ports count up from the first node's.
choose_kafka_settings() {
  if [[ -n $WANT_BROKERS && $WANT_BROKERS != "$(brokers)" ]]; then
    kafka_has_data && die "$DIR holds a cluster of $(brokers) broker(s); run 'reset' first, or use another --dir"
    remember brokers "$WANT_BROKERS"
  fi
  local number port
  for ((number = 1; number <= $(brokers); number++)); do
    port=
    [[ -n $WANT_KAFKA_PORT ]] && port=$((WANT_KAFKA_PORT + number - 1))
    choose_port "kafka_${number}_port" "$port"
    choose_port "kafka_${number}_controller_port"
  done
  choose_secure_settings
}

kafka_voters() {
  local node list=
  for node in $(kafka_nodes); do
    list+=,${node#kafka-}@127.0.0.1:$(kafka_controller_port "$node")
  done
  printf '%s' "${list:1}"
}

kafka_properties() { # NODE
  local replicas=1 in_sync=1
  if (($(brokers) >= 3)); then replicas=3 in_sync=2; fi
  cat <<PROPERTIES
# Written by scripts/stack at every start.
process.roles=broker,controller
node.id=${1#kafka-}
controller.quorum.voters=$(kafka_voters)
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:$(kafka_port "$1"),CONTROLLER://127.0.0.1:$(kafka_controller_port "$1")$(secure_listeners "$1")
advertised.listeners=PLAINTEXT://127.0.0.1:$(kafka_port "$1")$(secure_listeners "$1")
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT$(secure_protocols)
log.dirs=$DIR/$1/data

auto.create.topics.enable=false
delete.topic.enable=true
num.partitions=1
default.replication.factor=$replicas
min.insync.replicas=$in_sync

# Groups form at once, and offsets outlive any pause in development.
group.initial.rebalance.delay.ms=0
offsets.retention.minutes=525600

offsets.topic.replication.factor=$replicas
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=$replicas
transaction.state.log.min.isr=$in_sync
transaction.state.log.num.partitions=8
share.coordinator.state.topic.replication.factor=$replicas
share.coordinator.state.topic.min.isr=$in_sync
share.coordinator.state.topic.num.partitions=8

# Its default of 128 MB is too much of a small heap.
log.cleaner.dedupe.buffer.size=33554432
PROPERTIES
  (($(brokers) > 1)) || cat <<PROPERTIES

# On a busy machine a lone broker may get no CPU for seconds: its controller, in the same process, must not take its partitions
# from it for that. A killed broker comes back only after its old session has timed out, so not much longer than the default of 9 s.
broker.session.timeout.ms=12000
broker.heartbeat.interval.ms=500
PROPERTIES
  secure_properties
}

kafka_heap() { (($(brokers) > 1)) && printf '512m' || printf '1g'; }

# One node is formatted by Kafka's tool, which takes seconds; the others get what it wrote, with their own ids.
format_kafka() { # NODE
  local data=$DIR/$1/data sample=$DIR/formatted
  [[ -f $data/meta.properties ]] && return
  if [[ ! -d $sample ]]; then
    format_with_tool "$1"
    # Whole or not at all: an interrupted copy must not become the others' sample.
    rm -rf "$sample.new"
    cp -r "$data" "$sample.new"
    mv "$sample.new" "$sample"
    return
  fi
  rm -rf "$data"
  cp -r "$sample" "$data.new"
  sed -i -e "s/^node.id=.*/node.id=${1#kafka-}/" -e "s/^directory.id=.*/directory.id=$(random_uuid)/" "$data.new/meta.properties"
  mv "$data.new" "$data"
}

format_with_tool() { # NODE
  [[ -n $(setting kafka_cluster_id) ]] || remember kafka_cluster_id "$(random_text 22)"
  say "$1: formatting its data folder"
  local output options
  mapfile -t options < <(secure_format_options)
  set_tool_java
  output=$("${TOOL_JAVA[@]}" kafka.tools.StorageTool format --cluster-id "$(setting kafka_cluster_id)" \
    --config "$DIR/$1/server.properties" "${options[@]}" 2>&1) && return
  tail -n 15 <<<"$output" >&2
  die "$1: formatting $DIR/$1/data failed (see above)"
}

# As Kafka writes them: 16 bytes in base64 for URLs.
random_uuid() { head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '='; }

# Kafka's tools run in a short-lived JVM: quick to start rather than quick to run. Their class and arguments follow.
set_tool_java() {
  TOOL_JAVA=("$JAVA" -Xmx256m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xshare:auto
    -Dlog4j2.configurationFile="$PARTS/tools-log4j2.xml" -cp "$(kafka_classpath)")
}

launch_kafka() { # NODE
  local heap
  heap=$(kafka_heap)
  require_port "$1" "$(kafka_port "$1")" "--kafka-port"
  require_port "$1" "$(kafka_controller_port "$1")" "'reset'"
  mkdir -p "$DIR/$1"
  (umask 077 && kafka_properties "$1" >"$DIR/$1/server.properties")
  format_kafka "$1"
  roll_log "$DIR/logs/$1.out"
  say "$1: starting"
  launch "$1" "$DIR/logs/$1.out" "$JAVA" "-Xms$heap" "-Xmx$heap" \
    -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -XX:InitiatingHeapOccupancyPercent=35 -XX:+ExitOnOutOfMemoryError \
    -Xshare:auto -Djava.awt.headless=true -Dfloodway.stack="$DIR/$1" -Dfloodway.log="$DIR/logs/$1.log" \
    -Dlog4j2.configurationFile="$PARTS/kafka-log4j2.xml" -cp "$(kafka_classpath)" \
    kafka.Kafka "$DIR/$1/server.properties"
}

# Asks the node for the cluster's metadata (Kafka's Metadata request, version 4). It is up once its answer lists the
# node itself, which means the controller lets it serve, and carries our cluster id, so it is not somebody else's.
kafka_answers() { # NODE
  local answer count entry=42 offset id
  answer=$(ask "$(kafka_port "$1")" "$(hex32 15)$(hex16 3)$(hex16 4)$(hex32 7)ffff$(hex32 0)00")
  # length 4 bytes, our request's number 4, throttle time 4, number of brokers 4, then the brokers
  [[ ${answer:8:8} == "$(hex32 7)" ]] || return 1
  count=$((16#${answer:24:8}))
  id=$(hex32 "${1#kafka-}")
  # a broker: id 4 bytes, host as length 2 and text (always 127.0.0.1, 9), port 4, rack 2 (none)
  for ((offset = 32; count > 0; count--, offset += entry)); do
    [[ ${answer:offset:8} == "$id" && $answer == *"$(hex_text "$(setting kafka_cluster_id)")"* ]] && return
  done
  return 1
}

# ---- Kafka's own command line tools --------------------------------------------------------------------------------

tool_class() {
  case ${1%.sh} in
  kafka-acls) echo org.apache.kafka.tools.AclCommand ;;
  kafka-broker-api-versions) echo org.apache.kafka.tools.BrokerApiVersionsCommand ;;
  kafka-cluster) echo org.apache.kafka.tools.ClusterTool ;;
  kafka-configs) echo kafka.admin.ConfigCommand ;;
  kafka-console-consumer) echo org.apache.kafka.tools.consumer.ConsoleConsumer ;;
  kafka-console-producer) echo org.apache.kafka.tools.ConsoleProducer ;;
  kafka-consumer-groups) echo org.apache.kafka.tools.consumer.group.ConsumerGroupCommand ;;
  kafka-consumer-perf-test) echo org.apache.kafka.tools.ConsumerPerformance ;;
  kafka-delete-records) echo org.apache.kafka.tools.DeleteRecordsCommand ;;
  kafka-dump-log) echo org.apache.kafka.tools.DumpLogSegments ;;
  kafka-features) echo org.apache.kafka.tools.FeatureCommand ;;
  kafka-get-offsets) echo org.apache.kafka.tools.GetOffsetShell ;;
  kafka-groups) echo org.apache.kafka.tools.GroupsCommand ;;
  kafka-leader-election) echo org.apache.kafka.tools.LeaderElectionCommand ;;
  kafka-log-dirs) echo org.apache.kafka.tools.LogDirsCommand ;;
  kafka-metadata-quorum) echo org.apache.kafka.tools.MetadataQuorumCommand ;;
  kafka-producer-perf-test) echo org.apache.kafka.tools.ProducerPerformance ;;
  kafka-reassign-partitions) echo org.apache.kafka.tools.reassign.ReassignPartitionsCommand ;;
  kafka-storage) echo kafka.tools.StorageTool ;;
  kafka-topics) echo org.apache.kafka.tools.TopicCommand ;;
  kafka-transactions) echo org.apache.kafka.tools.TransactionsCommand ;;
  *.*) echo "$1" ;;
  *) die "no Kafka tool named '$1' is known; give its class name" ;;
  esac
}

# A tool given by its usual name is told where the brokers are unless the arguments say so; a class is run as given.
kafka_tool() { # NAME_OR_CLASS ARGUMENT...
  (($# > 0)) || die "which tool? For example: scripts/stack kafka-tool kafka-topics --list"
  local name=$1 class bootstrap=()
  class=$(tool_class "$name")
  shift
  artifacts_present || die "Kafka is not here yet; run: scripts/stack up"
  need_java
  set_tool_java
  case "$name $*" in
  *.*' '* | *' --bootstrap-'* | kafka-cluster* | kafka-dump-log* | kafka-storage*) ;;
  *) bootstrap=(--bootstrap-server "${EXTERNAL_KAFKA:-$(kafka_addresses)}") ;;
  esac
  exec "${TOOL_JAVA[@]}" "$class" "${bootstrap[@]}" "$@"
}
