# syntax=docker/dockerfile:1
# One image for every role: the subcommand decides. `make image` builds it.

FROM rust:1.95-bookworm AS build
# What the build scripts need: librdkafka's configure and make, OpenSSL for TLS to Kafka, zlib.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ libssl-dev make pkg-config zlib1g-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
# The caches outlive the layer, so a change of the sources compiles only what it touches; the binary is copied out of
# them, for they are not part of the image. Locked: two builds at once would wait for each other, not spoil the folder.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/build/target,sharing=locked \
    cargo build --release --locked --package floodway \
 && install -D --mode=0755 target/release/floodway /out/floodway

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates libssl3 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/floodway /usr/local/bin/floodway
# Fails the build when a library is missing in this stage: libz, for one, comes with the base image.
RUN ["floodway", "--version"]

ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Floodway" \
      org.opencontainers.image.description="Accepts events over HTTP, keeps them in Kafka, delivers them to webhooks, retries on schedule" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# A number, so that Kubernetes can verify runAsNonRoot. Nothing is written to the file system.
USER 10001:10001
# On loopback, their default, nothing outside the container could reach them.
ENV FLOODWAY_ADMIN__LISTEN=0.0.0.0:8082 \
    FLOODWAY_CONTROL_PLANE__LISTEN=0.0.0.0:8081 \
    FLOODWAY_INGEST__LISTEN=0.0.0.0:8080
# Ingest, control plane, admin.
EXPOSE 8080 8081 8082
STOPSIGNAL SIGTERM
ENTRYPOINT ["floodway"]
